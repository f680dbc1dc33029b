// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that counts what instructions of kernel modules write to, by cache line and processor. See
 * `cpus`.
 *
 *	-plugin sharing.so,out=FILE
 *
 * When the guest ends, FILE has a line for each instruction and cache line: both addresses, and how often each of
 * the first two processors wrote there.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

/* Where modules lie on x86-64; lines of 64 bytes. */
enum { LINE = 6, PLACES = 1 << 22 };
#define MODULES 0xffffffffc0000000

static struct place {
	uint64_t at, line;
	unsigned long times[2];
} *places;
static unsigned long known;
static const char *file;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void written(unsigned int cpu, uint32_t info, uint64_t address, void *data)
{
	uint64_t at = (uint64_t)data, line = address >> LINE;
	uint64_t place = (at ^ line * 0x9e3779b97f4a7c15) * 0x9e3779b97f4a7c15 >> 42;

	pthread_mutex_lock(&lock);
	while (places[place].at && (places[place].at != at || places[place].line != line))
		place = (place + 1) % PLACES;
	if (!places[place].at && known < PLACES / 2) {
		known++;
		places[place].at = at;
		places[place].line = line;
	}
	if (places[place].at && cpu < 2)
		places[place].times[cpu]++;
	pthread_mutex_unlock(&lock);
}

static void translated(struct qemu_plugin_tb *block, void *data)
{
	size_t count = qemu_plugin_tb_n_insns(block);

	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
		uint64_t at = qemu_plugin_insn_vaddr(instruction);

		if (at >= MODULES)
			qemu_plugin_register_vcpu_mem_cb(instruction, written, 0, WRITES, (void *)at);
	}
}

static void ended(void *data)
{
	FILE *out = fopen(file, "w");

	if (!out)
		return;
	for (struct place *place = places; place < places + PLACES; place++)
		if (place->at)
			fprintf(out, "%lx %lx %lu %lu\n", place->at, place->line << LINE, place->times[0], place->times[1]);
	fclose(out);
}

EXPORT int qemu_plugin_install(id_t_ id, const struct qemu_info_t *info, int argc, char **argv)
{
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "out=", 4))
			file = strdup(argv[i] + 4);
	places = calloc(PLACES, sizeof(*places));
	if (!file || !places)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
