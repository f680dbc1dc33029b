// SPDX-License-Identifier: GPL-2.0
/*
 * Has functions of the kernel fail for want of memory, if a given module calls them. For tests, on kernels
 * that are not built for that, and good for nothing else.
 *
 *	insmod faults.ko caller=MODULE pointers=FUNCTION,... errors=FUNCTION,...
 *
 * The former fail by giving NULL, the latter -ENOMEM. They do from when the parameter `pass` is written: so
 * many calls succeed, and those that follow fail, until it is written again; -1 is for ever. What reallocates
 * always succeeds in making nothing of something, which frees it.
 *
 * And has packets arrive without any room before their link-layer header, on the device whose name is written to the
 * parameter `tight`, in the namespace of who writes it, until an empty one is.
 */
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_netdev.h>
#include <linux/nsproxy.h>
#include <linux/rtnetlink.h>
#include <linux/skbuff.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>

#define MOST 16

static char *caller = "";
module_param(caller, charp, 0444);
static char *pointers[MOST];
static int number_of_pointers;
module_param_array(pointers, charp, &number_of_pointers, 0444);
static char *errors[MOST];
static int number_of_errors;
module_param_array(errors, charp, &number_of_errors, 0444);

static atomic_t pass = ATOMIC_INIT(-1);
/* Calls that have failed, by function: first the pointers. */
static unsigned int failed[2 * MOST];
static int number_of_failed = 2 * MOST;
module_param_array(failed, uint, &number_of_failed, 0444);

static struct kprobe probes[2 * MOST];

static int set_pass(const char *text, const struct kernel_param *parameter)
{
	int value, error = kstrtoint(text, 0, &value);

	if (!error)
		atomic_set(&pass, value);
	return error;
}

static int get_pass(char *text, const struct kernel_param *parameter)
{
	return sysfs_emit(text, "%d\n", atomic_read(&pass));
}

static const struct kernel_param_ops pass_operations = { .set = set_pass, .get = get_pass };
module_param_cb(pass, &pass_operations, NULL, 0644);

/* What is called instead. */
static noinline void *no_pointer(void)
{
	barrier();
	return NULL;
}

static noinline long no_memory(void)
{
	barrier();
	return -ENOMEM;
}

/* Whether the function that has just been called will return to the module. */
static bool is_called_by_it(struct pt_regs *regs)
{
	char name[KSYM_SYMBOL_LEN], owner[MODULE_NAME_LEN + 2];

	sprint_symbol(name, *(unsigned long *)regs->sp);
	snprintf(owner, sizeof(owner), "[%s]", caller);
	return strstr(name, owner);
}

/* Whether the function is one that reallocates, with a second argument, the size, of 0. */
static bool is_to_free(struct kprobe *probe, struct pt_regs *regs)
{
	return strstr(probe->symbol_name, "realloc") && !regs_get_kernel_argument(regs, 1);
}

static int called(struct kprobe *probe, struct pt_regs *regs)
{
	int at = probe - probes;

	if (atomic_read(&pass) < 0 || is_to_free(probe, regs) || !is_called_by_it(regs))
		return 0;
	if (atomic_dec_if_positive(&pass) >= 0)
		return 0;
	failed[at]++;
	regs->ip = at < MOST ? (unsigned long)no_pointer : (unsigned long)no_memory;
	return 1;
}
NOKPROBE_SYMBOL(called);

/* That there is one says that the other may change where execution goes on. */
static void afterwards(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}
NOKPROBE_SYMBOL(afterwards);

static unsigned int tighten(void *private, struct sk_buff *skb, const struct nf_hook_state *state)
{
	int spare = skb_mac_header(skb) - skb->head;

	/* What others have, too, has to stay where it is. */
	if (skb_cloned(skb) || skb_shared(skb) || spare <= 0)
		return NF_ACCEPT;
	memmove(skb->head, skb->head + spare, skb_tail_pointer(skb) - skb->head - spare);
	skb->data -= spare;
	skb->tail -= spare;
	skb_headers_offset_update(skb, -spare);
	return NF_ACCEPT;
}

static struct nf_hook_ops tight = {
	.hook = tighten,
	.pf = NFPROTO_NETDEV,
	.hooknum = NF_NETDEV_INGRESS,
	.priority = INT_MIN,
};

static void be_wide(void)
{
	if (tight.dev) {
		nf_unregister_net_hook(dev_net(tight.dev), &tight);
		dev_put(tight.dev);
	}
	tight.dev = NULL;
}

/* Parameters are written one at a time. */
static int set_tight(const char *text, const struct kernel_param *parameter)
{
	char name[IFNAMSIZ];
	int error;

	be_wide();
	strscpy(name, text, sizeof(name));
	strim(name);
	if (!*name)
		return 0;
	tight.dev = dev_get_by_name(current->nsproxy->net_ns, name);
	if (!tight.dev)
		return -ENODEV;
	error = nf_register_net_hook(dev_net(tight.dev), &tight);
	if (error) {
		dev_put(tight.dev);
		tight.dev = NULL;
	}
	return error;
}

static const struct kernel_param_ops tight_operations = { .set = set_tight };
module_param_cb(tight, &tight_operations, NULL, 0200);

static void remove_all(void)
{
	for (int at = 0; at < 2 * MOST; at++)
		if (probes[at].symbol_name)
			unregister_kprobe(&probes[at]);
}

static int __init begin(void)
{
	for (int at = 0; at < 2 * MOST; at++) {
		bool gives_pointer = at < MOST;
		int error, number = at % MOST;

		if (number >= (gives_pointer ? number_of_pointers : number_of_errors))
			continue;
		probes[at].symbol_name = gives_pointer ? pointers[number] : errors[number];
		probes[at].pre_handler = called;
		probes[at].post_handler = afterwards;
		error = register_kprobe(&probes[at]);
		if (error) {
			pr_err("faults: %s: %d\n", probes[at].symbol_name, error);
			probes[at].symbol_name = NULL;
			remove_all();
			return error;
		}
	}
	return 0;
}

static void __exit end(void)
{
	be_wide();
	remove_all();
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Has functions fail for want of memory, if a given module calls them");
MODULE_LICENSE("GPL");
