// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that writes down which lines of memory a packet reads and writes: from one function of the kernel
 * to another one. See `profile`.
 *
 *	-plugin touched.so,start=ADDRESS,end=ADDRESS,mark=ADDRESS,out=FILE
 *
 * It looks at packets between an odd and the next even time that the instruction at `mark` is executed; that is a
 * section. A packet is what happens from the instruction at `start` to that at `end`. FILE has 64-bit words: of each
 * packet PACKET, the number of its section, and for each line that was touched its address with READ and WRITTEN added,
 * and the address of the instruction that was the first to do so. At the end of a section there is, for each page in
 * the kernel's linear map that has been touched so far and is the slab allocator's, PAGE, the page's address, that
 * of the slab, and the cache's name in four words.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

/* Lines of 64 bytes, pages of 4096; what is added to the address of a line. */
enum { LINE = 6, PAGE_SHIFT = 12, READ = 1, WRITTEN = 2 };
/* More lines than a packet touches, and more pages than all do. */
enum { LINES = 1 << 14, PAGES = 1 << 20 };
#define PACKET (~0ull)
#define PAGE (~1ull)

/* Where the kernel has its linear map, and what it knows of each page of it, without KASLR
 * (Documentation/arch/x86/x86_64/mm.rst). Of a page that is not the first one of what was allocated together, the
 * second word is odd, and says where that of the first one is: its address, or the bits of this one's that it shares
 * with it. Of a slab it is the cache. */
#define LINEAR 0xffff888000000000ull
#define PAGE_INFO 0xffffea0000000000ull
enum { PAGE_INFO_SIZE = 64, LINEAR_TB = 64, CACHE_SIZE = 256, NAME = 32 };

static uint64_t start, end, mark;
static FILE *out;
static uint64_t section;
static bool inside;

/* The lines that the present packet has touched, and in which place of an open hash table each is. */
static struct line {
	uint64_t line, first;
	unsigned int how;
} lines[LINES / 2];
static unsigned int known;
static struct line *places[LINES];
/* The pages in the linear map that any packet has touched: an open hash table. */
static uint64_t pages[PAGES];
static unsigned int known_pages;

static void word(uint64_t value)
{
	fwrite(&value, sizeof(value), 1, out);
}

static void touch(uint64_t line, uint64_t at, unsigned int how)
{
	unsigned int place = line * 0x9e3779b97f4a7c15 >> 50;

	while (places[place] && places[place]->line != line)
		place = (place + 1) % LINES;
	if (!places[place]) {
		if (known == LINES / 2)
			return;
		lines[known] = (struct line){ line, at, 0 };
		places[place] = &lines[known++];
	}
	places[place]->how |= how;
}

static void accessed(unsigned int cpu, uint32_t info, uint64_t address, void *data)
{
	unsigned int how = qemu_plugin_mem_is_store(info) ? WRITTEN : READ;
	uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;

	if (!inside)
		return;
	touch(address >> LINE, (uint64_t)data, how);
	if (last >> LINE != address >> LINE)
		touch(last >> LINE, (uint64_t)data, how);
}

static void remember_page(uint64_t page)
{
	unsigned int place = page * 0x9e3779b97f4a7c15 >> 44;

	while (pages[place] && pages[place] != page)
		place = (place + 1) % PAGES;
	if (!pages[place] && known_pages < PAGES / 2) {
		pages[place] = page;
		known_pages++;
	}
}

static void begins(unsigned int cpu, void *data)
{
	inside = section % 2;
	known = 0;
	memset(places, 0, sizeof(places));
}

static void ends(unsigned int cpu, void *data)
{
	if (!inside)
		return;
	inside = false;
	word(PACKET);
	word(section / 2);
	for (struct line *line = lines; line < lines + known; line++) {
		word(line->line << LINE | line->how);
		word(line->first);
		remember_page(line->line << LINE >> PAGE_SHIFT << PAGE_SHIFT);
	}
}

/* Reads the guest's memory. Gives NULL if there is none. */
static const void *memory(uint64_t address, size_t length)
{
	static struct bytes *bytes;

	if (!bytes)
		bytes = g_byte_array_new();
	return qemu_plugin_read_memory_vaddr(address, bytes, length) ? bytes->data : NULL;
}

/* Finds a cache's name, which is the one pointer to a word that it begins with, among pointers to other things. Gives
 * whether it has one. */
static bool name_of(uint64_t cache, char *name)
{
	uint64_t parts[CACHE_SIZE / 8];
	const void *found = memory(cache, sizeof(parts));

	if (!found)
		return false;
	memcpy(parts, found, sizeof(parts));
	for (unsigned int part = 0; part < CACHE_SIZE / 8; part++) {
		unsigned int length = 0;

		if (parts[part] < LINEAR || !(found = memory(parts[part], NAME)))
			continue;
		memset(name, 0, NAME);
		memcpy(name, found, NAME - 1);
		while (isalnum(name[length]) || (length && name[length] && strchr("_-:/", name[length])))
			length++;
		if (length > 3 && !name[length]) {
			memset(name + length, 0, NAME - length);
			return true;
		}
	}
	return false;
}

static void tell_page(uint64_t page)
{
	uint64_t info = PAGE_INFO + ((page - LINEAR) >> PAGE_SHIFT) * PAGE_INFO_SIZE, second;
	char name[NAME];
	const uint64_t *words = memory(info, 16);

	if (!words)
		return;
	second = words[1];
	if (second & 1) {
		info = second >> 32 == 0xffffffff ? info & (second & ~1ull) : second & ~1ull;
		if (!(words = memory(info, 16)))
			return;
		second = words[1];
	}
	if (second < LINEAR || second & 7 || !name_of(second, name))
		return;
	word(PAGE);
	word(page);
	word(LINEAR + (info - PAGE_INFO) / PAGE_INFO_SIZE * (1ull << PAGE_SHIFT));
	fwrite(name, NAME, 1, out);
}

static void marked(unsigned int cpu, void *data)
{
	inside = false;
	if (section++ % 2 == 0)
		return;
	for (unsigned int place = 0; place < PAGES; place++)
		if (pages[place] >= LINEAR && pages[place] < LINEAR + ((uint64_t)LINEAR_TB << 40))
			tell_page(pages[place]);
	memset(pages, 0, sizeof(pages));
	known_pages = 0;
}

static void translated(struct qemu_plugin_tb *block, void *data)
{
	size_t count = qemu_plugin_tb_n_insns(block);

	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
		uint64_t at = qemu_plugin_insn_vaddr(instruction);

		if (!(at >> 63))
			continue;
		/* QEMU_PLUGIN_CB_NO_REGS, and QEMU_PLUGIN_CB_R_REGS for what reads memory. */
		if (at == start)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, begins, 0, NULL);
		else if (at == end)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, ends, 0, NULL);
		else if (at == mark)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, marked, 1, NULL);
		qemu_plugin_register_vcpu_mem_cb(instruction, accessed, 0, READS_AND_WRITES, (void *)at);
	}
}

static void ended(void *data)
{
	fclose(out);
}

EXPORT int qemu_plugin_install(id_t_ id, const struct qemu_info_t *info, int count, char **arguments)
{
	for (int i = 0; i < count; i++) {
		if (!strncmp(arguments[i], "start=", 6))
			start = strtoull(arguments[i] + 6, NULL, 16);
		else if (!strncmp(arguments[i], "end=", 4))
			end = strtoull(arguments[i] + 4, NULL, 16);
		else if (!strncmp(arguments[i], "mark=", 5))
			mark = strtoull(arguments[i] + 5, NULL, 16);
		else if (!strncmp(arguments[i], "out=", 4))
			out = fopen(arguments[i] + 4, "w");
		else
			return -1;
	}
	if (!start || !end || !mark || !out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
