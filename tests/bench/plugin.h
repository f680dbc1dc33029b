/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the plugins for QEMU here use of its interface (include/plugins/qemu-plugin.h, version 7), which has no header in
 * Debian, and of GLib's.
 */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Who a plugin is to QEMU. */
typedef uint64_t id_t_;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;

/* GByteArray. */
struct bytes {
	uint8_t *data;
	unsigned int length;
};

/* QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW. */
enum { WRITES = 2, READS_AND_WRITES = 3 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_ id, void (*call)(struct qemu_plugin_tb *, void *), void *data);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*call)(unsigned int, void *),
						   int flags, void *data);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
					     void (*call)(unsigned int, uint32_t, uint64_t, void *), int flags, int what,
					     void *data);
extern void qemu_plugin_register_atexit_cb(id_t_ id, void (*call)(void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
extern unsigned int qemu_plugin_mem_size_shift(uint32_t info);
extern bool qemu_plugin_mem_is_store(uint32_t info);
extern bool qemu_plugin_read_memory_vaddr(uint64_t address, struct bytes *, size_t length);
extern struct bytes *g_byte_array_new(void);

/* Each plugin has one: what QEMU calls when it loads it, and what it asks it for before. */
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 7;
EXPORT int qemu_plugin_install(id_t_ id, const struct qemu_info_t *info, int argc, char **argv);

#endif
