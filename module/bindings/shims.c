// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the kernel's headers, which Rust can't call, and nothing else.
 * Types and fields are reached through bindgen instead.
 */
#include "bindings.h"

#include <linux/percpu.h>
#include <linux/random.h>
#include <net/addrconf.h>
#include <net/dsa.h>
#include <net/netns/generic.h>

bool ft_ct_has_helper(const struct nf_conn *ct)
{
	const struct nf_conn_help *help = nfct_help(ct);

	return help && rcu_access_pointer(help->helper);
}

bool ft_ct_adjusts_sequence(const struct nf_conn *ct)
{
	return nfct_seqadj(ct) || nfct_synproxy(ct);
}

u16 ft_ct_zone_id(const struct nf_conn *ct, unsigned int dir)
{
	return nf_ct_zone_id(nf_ct_zone(ct), dir);
}

bool ft_ct_tcp_be_liberal(const struct nf_conn *ct)
{
	return READ_ONCE(nf_tcp_pernet(nf_ct_net(ct))->tcp_be_liberal);
}

u32 ft_ct_tcp_timeout(const struct nf_conn *ct, bool unacknowledged)
{
	const unsigned int *timeouts = nf_ct_timeout_lookup(ct);

	if (!timeouts)
		timeouts = nf_tcp_pernet(nf_ct_net(ct))->timeouts;
	if (unacknowledged)
		return min(timeouts[TCP_CONNTRACK_ESTABLISHED], timeouts[TCP_CONNTRACK_UNACK]);
	return timeouts[TCP_CONNTRACK_ESTABLISHED];
}

void ft_ct_get(struct nf_conn *ct)
{
	nf_conntrack_get(&ct->ct_general);
}

void ft_ct_put(struct nf_conn *ct)
{
	nf_ct_put(ct);
}

void ft_ct_lock(struct nf_conn *ct)
{
	spin_lock_bh(&ct->lock);
}

void ft_ct_unlock(struct nf_conn *ct)
{
	spin_unlock_bh(&ct->lock);
}

bool ft_dst_hold_safe(struct dst_entry *dst)
{
	return dst_hold_safe(dst);
}

bool ft_bundle_is_current(struct dst_entry *dst)
{
	/* A bundle does not ask for a cookie: it has those of its routes. */
	return dst_check(dst, 0);
}

u32 ft_ip_forward_mtu(const struct dst_entry *dst)
{
	return ip_dst_mtu_maybe_forward(dst, true);
}

bool ft_ip_forward_mtu_varies(const struct dst_entry *dst)
{
	bool varies;

	rcu_read_lock();
	varies = READ_ONCE(dev_net_rcu(dst_dev_rcu(dst))->ipv4.sysctl_ip_fwd_use_pmtu) ||
		 ip_mtu_locked(dst);
	rcu_read_unlock();
	return varies;
}

u32 ft_ip6_forward_mtu(const struct dst_entry *dst)
{
	return ip6_dst_mtu_maybe_forward(dst, true);
}

bool ft_forwards_ipv6_of(struct net *net, unsigned int ifindex)
{
	const struct inet6_dev *idev = __in6_dev_get_safely(dev_get_by_index_rcu(net, ifindex));

	return idev && READ_ONCE(idev->cnf.force_forwarding);
}

struct neighbour *ft_neigh_for_route(struct rtable *rt, struct sk_buff *skb)
{
	bool is_v6gw = false;
	struct neighbour *neigh = ip_neigh_for_gw(rt, skb, &is_v6gw);

	if (IS_ERR(neigh) || !refcount_inc_not_zero(&neigh->refcnt))
		return NULL;
	return neigh;
}

struct neighbour *ft_neigh_for_ip6_route(const struct rt6_info *rt, struct sk_buff *skb)
{
	const struct in6_addr *nexthop = rt6_nexthop(rt, &ipv6_hdr(skb)->daddr);
	struct neighbour *neigh = ip_neigh_gw6(dst_dev_rcu(&rt->dst), nexthop);

	if (IS_ERR(neigh) || !refcount_inc_not_zero(&neigh->refcnt))
		return NULL;
	return neigh;
}

void ft_neigh_release(struct neighbour *neigh)
{
	neigh_release(neigh);
}

bool ft_xmit_past_queue(struct sk_buff *skb, struct net_device *dev, struct netdev_queue *txq)
{
	netdev_tx_t rc;

	if (dev_xmit_recursion())
		return false;
	dev_xmit_recursion_inc();
	rc = netdev_start_xmit(skb, dev, txq, false);
	dev_xmit_recursion_dec();
	return dev_xmit_complete(rc);
}

int ft_neigh_output(struct neighbour *neigh, struct sk_buff *skb)
{
	if (skb_cow_head(skb, LL_RESERVED_SPACE(neigh->dev))) {
		kfree_skb(skb);
		return -ENOMEM;
	}
	return READ_ONCE(neigh->output)(neigh, skb);
}

/*
 * __netif_receive_skb_core() takes off such a tag further on, if no handler has the packet before and
 * there is no device for VLAN 0. It looks for another tag in the packet only then, so that one is left to it.
 */
bool ft_skb_drop_priority_tag(struct sk_buff *skb)
{
	if (!skb_vlan_tag_present(skb) || skb_vlan_tag_get_id(skb) || eth_type_vlan(skb->protocol) ||
	    rcu_access_pointer(skb->dev->rx_handler) || netdev_uses_dsa(skb->dev) ||
	    __vlan_find_dev_deep_rcu(skb->dev, skb->vlan_proto, 0))
		return false;
	__vlan_hwaccel_clear_tag(skb);
	return true;
}

bool ft_pskb_may_pull(struct sk_buff *skb, unsigned int len)
{
	return pskb_may_pull(skb, len);
}

int ft_skb_cow_head_and_data(struct sk_buff *skb, unsigned int headroom, unsigned int writable)
{
	return skb_cow_head(skb, headroom) ?: skb_ensure_writable(skb, writable);
}

int ft_pskb_trim_rcsum(struct sk_buff *skb, unsigned int len)
{
	return pskb_trim_rcsum(skb, len);
}

void ft_skb_ext_get(struct skb_ext *ext)
{
	refcount_inc(&ext->refcnt);
}

int ft_dst_output(struct net *net, struct sk_buff *skb)
{
	return dst_output(net, NULL, skb);
}

void ft_skb_orphan(struct sk_buff *skb)
{
	skb_orphan(skb);
}

void ft_skb_forward_csum(struct sk_buff *skb)
{
	skb_forward_csum(skb);
}

void ft_skb_dst_drop(struct sk_buff *skb)
{
	skb_dst_drop(skb);
}

void ft_kfree_skb(struct sk_buff *skb)
{
	kfree_skb(skb);
}

void ft_dev_sw_netstats_rx_add(struct net_device *dev, unsigned int len)
{
	dev_sw_netstats_rx_add(dev, len);
}

void __percpu *ft_alloc_percpu(size_t size, size_t align)
{
	return __alloc_percpu(size, align);
}

void ft_this_cpu_add(u64 __percpu *counter, u64 value)
{
	this_cpu_add(*counter, value);
}

void ft_this_cpu_add_one_and(u64 __percpu *counters, u64 value)
{
	/* With bottom halves off a task can be preempted there, and another one count on the same CPU. */
	if (IS_ENABLED(CONFIG_PREEMPT_RT)) {
		this_cpu_inc(counters[0]);
		this_cpu_add(counters[1], value);
	} else {
		raw_cpu_inc(counters[0]);
		raw_cpu_add(counters[1], value);
	}
}

void *ft_this_cpu_ptr(void __percpu *memory)
{
	return raw_cpu_ptr(memory);
}

u64 ft_per_cpu_sum(u64 __percpu *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(counter, cpu));
	return sum;
}

unsigned int ft_this_cpu(void)
{
	return raw_smp_processor_id();
}

struct kmem_cache *ft_cache_create(const char *name, unsigned int size, unsigned int align)
{
	/* Not merged with others: its own line in slabinfo shows a leak. */
	return kmem_cache_create(name, size, align, SLAB_NO_MERGE, NULL);
}

void *ft_cache_alloc_atomic(struct kmem_cache *cache)
{
	return kmem_cache_alloc(cache, GFP_ATOMIC | __GFP_NOWARN);
}

void *ft_net_generic(const struct net *net, unsigned int id)
{
	return net_generic(net, id);
}

bool ft_net_is_alive(const struct net *net)
{
	return check_net(net);
}

struct net *ft_dev_net(const struct net_device *dev)
{
	return dev_net(dev);
}

struct net *ft_xp_net(const struct xfrm_policy *xp)
{
	return xp_net(xp);
}

struct net *ft_xs_net(struct xfrm_state *x)
{
	return xs_net(x);
}

struct net *ft_sock_net(const struct sock *sk)
{
	return sock_net(sk);
}

struct net *ft_skb_sock_net(const struct sk_buff *skb)
{
	return sock_net(skb->sk);
}

u64 ft_random(void)
{
	return get_random_u64();
}

void ft_spin_lock_init(spinlock_t *lock)
{
	spin_lock_init(lock);
}

void ft_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

void ft_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

void ft_delayed_work_init(struct delayed_work *work, void (*run)(struct work_struct *))
{
	INIT_DELAYED_WORK(work, run);
}

struct net_device *ft_notifier_dev(void *info)
{
	return netdev_notifier_info_to_dev(info);
}

struct sk_buff *ft_genlmsg_new(bool atomic)
{
	return genlmsg_new(NLMSG_GOODSIZE, atomic ? GFP_ATOMIC : GFP_KERNEL);
}

void ft_genlmsg_end(struct sk_buff *skb, void *hdr)
{
	genlmsg_end(skb, hdr);
}

void ft_genlmsg_cancel(struct sk_buff *skb, void *hdr)
{
	genlmsg_cancel(skb, hdr);
}

struct nlattr *ft_nla_nest_start(struct sk_buff *skb, int type)
{
	return nla_nest_start(skb, type);
}

void ft_nla_nest_end(struct sk_buff *skb, struct nlattr *nest)
{
	nla_nest_end(skb, nest);
}

int ft_genlmsg_reply(struct sk_buff *skb, struct genl_info *info)
{
	return genlmsg_reply(skb, info);
}

int ft_genlmsg_multicast(const struct genl_family *family, struct net *net, struct sk_buff *skb,
			 unsigned int group, bool atomic)
{
	return genlmsg_multicast_netns(family, net, skb, 0, group,
				       atomic ? GFP_ATOMIC : GFP_KERNEL);
}

bool ft_genl_has_listeners(const struct genl_family *family, struct net *net, unsigned int group)
{
	return genl_has_listeners(family, net, group);
}

void ft_extack(struct genl_info *info, const char *text, const struct nlattr *attr)
{
	if (!info->extack)
		return;
	info->extack->_msg = text;
	info->extack->bad_attr = attr;
}
