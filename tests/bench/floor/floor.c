// SPDX-License-Identifier: GPL-2.0
/*
 * The least that anything can cost that forwards a packet from a device's ingress hook: it gets a fixed
 * link-layer header and is sent. Nothing is looked at. For measuring, and good for nothing else.
 *
 *	insmod floor.ko from=DEVICE to=DEVICE destination=MAC [tag=VLAN]
 *
 * in the network namespace that both devices are in. If a VLAN is named, packets lose the tag that they may
 * have, and get that of this VLAN, or none for 0.
 */
#include <linux/etherdevice.h>
#include <linux/hex.h>
#include <linux/if_vlan.h>
#include <linux/module.h>
#include <linux/netfilter_netdev.h>
#include <linux/nsproxy.h>
#include <linux/rtnetlink.h>

static char *from = "";
module_param(from, charp, 0444);
static char *to = "";
module_param(to, charp, 0444);
static char *destination = "";
module_param(destination, charp, 0444);

static int tag = -1;
module_param(tag, int, 0444);

static struct net *net;
static struct net_device *in, *out;
static u8 addresses[2 * ETH_ALEN];

static unsigned int redirect(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	struct ethhdr *header = skb_push(skb, ETH_HLEN);

	memcpy(header, addresses, sizeof(addresses));
	skb->dev = out;
	dev_queue_xmit(skb);
	return NF_STOLEN;
}

/* To a device whose packets have no link-layer header. */
static unsigned int redirect_bare(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	skb->dev = out;
	dev_queue_xmit(skb);
	return NF_STOLEN;
}

static unsigned int redirect_tagged(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	__vlan_hwaccel_clear_tag(skb);
	if (tag)
		__vlan_hwaccel_put_tag(skb, htons(ETH_P_8021Q), tag);
	return redirect(priv, skb, state);
}

static struct nf_hook_ops hook = {
	.hook = redirect,
	.pf = NFPROTO_NETDEV,
	.hooknum = NF_NETDEV_INGRESS,
};

static int __init begin(void)
{
	int error = -ENODEV;

	if (!mac_pton(destination, addresses))
		return -EINVAL;
	net = get_net(current->nsproxy->net_ns);
	in = dev_get_by_name(net, from);
	out = dev_get_by_name(net, to);
	if (in && out) {
		memcpy(addresses + ETH_ALEN, out->dev_addr, ETH_ALEN);
		hook.dev = in;
		if (tag >= 0)
			hook.hook = redirect_tagged;
		else if (!out->header_ops)
			hook.hook = redirect_bare;
		error = nf_register_net_hook(net, &hook);
	}
	if (error) {
		dev_put(in);
		dev_put(out);
		put_net(net);
	}
	return error;
}

static void __exit end(void)
{
	nf_unregister_net_hook(net, &hook);
	synchronize_net();
	dev_put(in);
	dev_put(out);
	put_net(net);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Forwards packets between two devices at the least cost");
MODULE_LICENSE("GPL");
