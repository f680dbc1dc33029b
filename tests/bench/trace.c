// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that writes down which instructions of the kernel are executed for a packet: from one
 * call of a function to the next one. See `profile`.
 *
 *	-plugin trace.so,start=ADDRESS,out=FILE
 *
 * When the guest ends, each way of getting from the instruction at ADDRESS back to it that was taken at least
 * OFTEN times is written to FILE: "trace TIMES LENGTH", and the instructions, in order, each with its address
 * and its text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

enum { LONGEST = 1 << 16, WAYS = 4096, OFTEN = 256, TEXTS = 1 << 20 };

/* A way that was taken. */
struct way {
	uint64_t hash;
	unsigned long times;
	unsigned int length;
	uint64_t *at;
};

static uint64_t start;
static const char *file;
static uint64_t now[LONGEST], hash;
static unsigned int length = LONGEST;
static struct way ways[WAYS];
static unsigned int known;

/* The texts of instructions, by address: an open hash table. */
static struct text {
	uint64_t at;
	char *text;
} texts[TEXTS];

static struct text *text_of(uint64_t at)
{
	uint64_t place = at * 0x9e3779b97f4a7c15 >> 44;

	while (texts[place].at && texts[place].at != at)
		place = (place + 1) % TEXTS;
	return &texts[place];
}

/* Ends a way. */
static void finish(void)
{
	struct way *way;

	if (length >= LONGEST)
		return;
	for (way = ways; way < ways + known; way++)
		if (way->hash == hash && way->length == length) {
			way->times++;
			return;
		}
	if (known == WAYS)
		return;
	known++;
	*way = (struct way){ hash, 1, length, malloc(length * sizeof(*now)) };
	memcpy(way->at, now, length * sizeof(*now));
}

static void executed(unsigned int cpu, void *data)
{
	uint64_t at = (uint64_t)data;

	if (at == start) {
		finish();
		length = 0;
		hash = 0;
	}
	if (length < LONGEST) {
		now[length++] = at;
		hash = (hash ^ at) * 0x100000001b3;
	}
}

static void translated(struct qemu_plugin_tb *block, void *data)
{
	size_t count = qemu_plugin_tb_n_insns(block);

	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
		uint64_t at = qemu_plugin_insn_vaddr(instruction);
		struct text *text;

		if (!(at >> 63))
			continue;
		text = text_of(at);
		free(text->text);
		*text = (struct text){ at, qemu_plugin_insn_disas(instruction) };
		qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, 0, (void *)at);
	}
}

static void ended(void *data)
{
	FILE *out = fopen(file, "w");

	if (!out)
		return;
	for (struct way *way = ways; way < ways + known; way++) {
		if (way->times < OFTEN)
			continue;
		fprintf(out, "trace %lu %u\n", way->times, way->length);
		for (unsigned int i = 0; i < way->length; i++)
			fprintf(out, "%lx %s\n", way->at[i], text_of(way->at[i])->text);
	}
	fclose(out);
}

EXPORT int qemu_plugin_install(id_t_ id, const struct qemu_info_t *info, int count, char **arguments)
{
	for (int i = 0; i < count; i++) {
		if (!strncmp(arguments[i], "start=", 6))
			start = strtoull(arguments[i] + 6, NULL, 16);
		else if (!strncmp(arguments[i], "out=", 4))
			file = strdup(arguments[i] + 4);
		else
			return -1;
	}
	if (!start || !file)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
