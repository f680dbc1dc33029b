/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads: the kernel's networking headers that the kernel crate has no bindings for, and
 * the shims of shims.c.
 */
#ifndef FASTTRACK_BINDINGS_H
#define FASTTRACK_BINDINGS_H

#include <linux/etherdevice.h>
#include <linux/if_arp.h>
#include <linux/if_vlan.h>
#include <linux/jiffies.h>
#include <linux/netdevice.h>
#include <linux/net.h>
#include <linux/netfilter.h>
#include <linux/netfilter_bridge.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_netdev.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <net/dst.h>
#include <net/genetlink.h>
#include <net/gso.h>
#include <net/ip.h>
#include <net/ip6_fib.h>
#include <net/ip6_route.h>
#include <net/ipv6.h>
#include <net/neighbour.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_conntrack_acct.h>
#include <net/netfilter/nf_conntrack_core.h>
#include <net/netfilter/nf_conntrack_helper.h>
#include <net/netfilter/nf_conntrack_l4proto.h>
#include <net/netfilter/nf_conntrack_seqadj.h>
#include <net/netfilter/nf_conntrack_synproxy.h>
#include <net/netfilter/nf_conntrack_timeout.h>
#include <net/netfilter/nf_conntrack_tuple.h>
#include <net/netdev_rx_queue.h>
#include <net/nexthop.h>
#include <net/route.h>
#include <net/rtnetlink.h>
#include <net/sch_generic.h>
#include <net/xfrm.h>

/* Constants that bindgen can't evaluate. */
enum {
	FT_IPSKB_FORWARDED = IPSKB_FORWARDED,
	FT_IPSKB_XFRM_TRANSFORMED = IPSKB_XFRM_TRANSFORMED,
	FT_IPSKB_REROUTED = IPSKB_REROUTED,
	FT_IP6SKB_FORWARDED = IP6SKB_FORWARDED,
	FT_IP6SKB_XFRM_TRANSFORMED = IP6SKB_XFRM_TRANSFORMED,
	FT_IP6SKB_REROUTED = IP6SKB_REROUTED,
	FT_CLONED_MASK = CLONED_MASK,
	FT_XFRM_MAX_DEPTH = XFRM_MAX_DEPTH,
	FT_XFRM_MSG_NEWAE = XFRM_MSG_NEWAE,
	FT_XFRM_MODE_FLAG_TUNNEL = XFRM_MODE_FLAG_TUNNEL,
	FT_XFRM_STATE_VALID = XFRM_STATE_VALID,
	FT_XFRM_DEV_OFFLOAD_PACKET = XFRM_DEV_OFFLOAD_PACKET,
	FT_HZ = HZ,
	FT_QUEUE_STATE_ANY_XOFF = QUEUE_STATE_ANY_XOFF,
	FT_GENL_MCAST_CAP_NET_ADMIN = GENL_MCAST_CAP_NET_ADMIN,
};

/* Each shim is the inline function or macro of the same name; its contract is that one's. */
bool ft_ct_has_helper(const struct nf_conn *ct);
bool ft_ct_adjusts_sequence(const struct nf_conn *ct);
u16 ft_ct_zone_id(const struct nf_conn *ct, unsigned int dir);
bool ft_ct_tcp_be_liberal(const struct nf_conn *ct);
u32 ft_ct_tcp_timeout(const struct nf_conn *ct, bool unacknowledged);
void ft_ct_get(struct nf_conn *ct);
void ft_ct_put(struct nf_conn *ct);
void ft_ct_lock(struct nf_conn *ct);
void ft_ct_unlock(struct nf_conn *ct);

bool ft_dst_hold_safe(struct dst_entry *dst);
bool ft_bundle_is_current(struct dst_entry *dst);
u32 ft_ip_forward_mtu(const struct dst_entry *dst);
u32 ft_ip6_forward_mtu(const struct dst_entry *dst);
bool ft_ip_forward_mtu_varies(const struct dst_entry *dst);
bool ft_forwards_ipv6_of(struct net *net, unsigned int ifindex);
struct neighbour *ft_neigh_for_route(struct rtable *rt, struct sk_buff *skb);
struct neighbour *ft_neigh_for_ip6_route(const struct rt6_info *rt, struct sk_buff *skb);
void ft_neigh_release(struct neighbour *neigh);

/* What __dev_queue_xmit does, past everything else, for a device without a queue and a lock. */
bool ft_xmit_past_queue(struct sk_buff *skb, struct net_device *dev, struct netdev_queue *txq);
int ft_neigh_output(struct neighbour *neigh, struct sk_buff *skb);

void ft_dev_sw_netstats_rx_add(struct net_device *dev, unsigned int len);
bool ft_skb_drop_priority_tag(struct sk_buff *skb);
bool ft_pskb_may_pull(struct sk_buff *skb, unsigned int len);
int ft_skb_cow_head_and_data(struct sk_buff *skb, unsigned int headroom, unsigned int writable);
int ft_pskb_trim_rcsum(struct sk_buff *skb, unsigned int len);
void ft_skb_ext_get(struct skb_ext *ext);
int ft_dst_output(struct net *net, struct sk_buff *skb);
void ft_skb_orphan(struct sk_buff *skb);
void ft_skb_forward_csum(struct sk_buff *skb);
void ft_skb_dst_drop(struct sk_buff *skb);
void ft_kfree_skb(struct sk_buff *skb);

void __percpu *ft_alloc_percpu(size_t size, size_t align);
void ft_this_cpu_add(u64 __percpu *counter, u64 value);
/* One to the first, and the value to the second. Bottom halves are off wherever these two are counted. */
void ft_this_cpu_add_one_and(u64 __percpu *counters, u64 value);
void *ft_this_cpu_ptr(void __percpu *memory);
u64 ft_per_cpu_sum(u64 __percpu *counter);
unsigned int ft_this_cpu(void);

struct kmem_cache *ft_cache_create(const char *name, unsigned int size, unsigned int align);
void *ft_cache_alloc_atomic(struct kmem_cache *cache);
void *ft_net_generic(const struct net *net, unsigned int id);
bool ft_net_is_alive(const struct net *net);
struct net *ft_dev_net(const struct net_device *dev);
struct net *ft_xp_net(const struct xfrm_policy *xp);
struct net *ft_xs_net(struct xfrm_state *x);
struct net *ft_sock_net(const struct sock *sk);
struct net *ft_skb_sock_net(const struct sk_buff *skb);
u64 ft_random(void);

void ft_spin_lock_init(spinlock_t *lock);
void ft_spin_lock_bh(spinlock_t *lock);
void ft_spin_unlock_bh(spinlock_t *lock);
void ft_delayed_work_init(struct delayed_work *work, void (*run)(struct work_struct *));

struct net_device *ft_notifier_dev(void *info);
struct sk_buff *ft_genlmsg_new(bool atomic);
void ft_genlmsg_end(struct sk_buff *skb, void *hdr);
void ft_genlmsg_cancel(struct sk_buff *skb, void *hdr);
struct nlattr *ft_nla_nest_start(struct sk_buff *skb, int type);
void ft_nla_nest_end(struct sk_buff *skb, struct nlattr *nest);
int ft_genlmsg_reply(struct sk_buff *skb, struct genl_info *info);
int ft_genlmsg_multicast(const struct genl_family *family, struct net *net, struct sk_buff *skb,
			 unsigned int group, bool atomic);
bool ft_genl_has_listeners(const struct genl_family *family, struct net *net, unsigned int group);
void ft_extack(struct genl_info *info, const char *text, const struct nlattr *attr);

#endif
