/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a container's packets cost on the way between its own interface and the host's, which a
 * packet of the host does not pay, in three kinds of pieces:
 *
 *   queue    from net_dev_queue to net_dev_start_xmit: it stands in a queueing discipline
 *   wait     from netif_rx to netif_receive_skb: the other end of the wire has it, and the softirq
 *            NET_RX has not come to it yet
 *   forward  from netif_receive_skb to net_dev_queue: bridge, packet filter, routing; all of it in
 *            one go, so on one CPU and without another packet in between
 */
#include "packets.h"

/* The container's own end of a wire, or the host's. */
enum { EDGE, WIRE };

/* Of a packet that leaves, and of one that comes. The first of a connection is apart: conntrack and
 * NAT make an entry for it, which no other packet pays for. */
enum { QUEUE_OUT, WAIT_OUT, FORWARD_OUT, QUEUE_IN, WAIT_IN, FORWARD_IN, FIRST_OUT, FIRST_IN };

#define IP_CT_NEW 2 /* include/uapi/linux/netfilter/nf_conntrack_common.h, in the low bits of _nfct */
#define NFCT_INFOMASK 7UL

struct end {
	u32 net, ifindex;
};

struct whose {
	u32 slot, role;
};

struct {
	HASH_OF(struct end, struct whose, 4096);
} ends SEC(".maps");

/* `bucket[4 * n + m]`: of 2^n * (4 + m) / 4 ns to the next. */
#define BUCKETS 128

struct piece {
	u32 slot, kind;
};

struct sums {
	u64 count, sum_ns, longest_ns;
	u32 bucket[BUCKETS];
};

struct {
	HASH_OF(struct piece, struct sums, 2048);
} pieces SEC(".maps");

/* What stands in a queue, or waits for its softirq. A packet that is thrown away there leaves its
 * entry behind, until another needs the room or the same packet's memory comes by again. */
struct since {
	u64 at_ns;
	u32 slot, kind;
};

struct {
	LRU_HASH_OF(u64, struct since, 8192);
} standing SEC(".maps");

struct {
	LRU_HASH_OF(u64, struct since, 8192);
} waiting SEC(".maps");

/* The packet that this CPU received last, and whose wire it came by. */
struct received {
	u64 packet, at_ns;
	struct whose from;
	u32 known, rest;
};

struct {
	PERCPU_ARRAY_OF(struct received, 1);
} received SEC(".maps");

INLINE struct whose *end_of(struct net_device *device)
{
	struct end end = { .net = net_of_device(device), .ifindex = device->ifindex };

	return bpf_map_lookup_elem(&ends, &end);
}

INLINE void count(u32 slot, u32 kind, u64 took)
{
	struct piece key = { .slot = slot, .kind = kind };
	struct sums *sums = bpf_map_lookup_elem(&pieces, &key);
	u32 octave = log2(took), bucket;

	if (!sums)
		return;
	bucket = octave * 4 + (octave >= 2 ? took >> (octave - 2) & 3 : 0);
	__sync_fetch_and_add(&sums->count, 1);
	__sync_fetch_and_add(&sums->sum_ns, took);
	if (took > sums->longest_ns)
		sums->longest_ns = took;
	/* No time is as long as the last bucket's; by the mask the verifier of 6.1 sees the bounds. */
	__sync_fetch_and_add(&sums->bucket[bucket & (BUCKETS - 1)], 1);
}

INLINE void begin(void *map, u64 packet, u32 slot, u32 kind)
{
	struct since since = { .at_ns = bpf_ktime_get_ns(), .slot = slot, .kind = kind };

	bpf_map_update_elem(map, &packet, &since, 0);
}

INLINE void end(void *map, u64 packet)
{
	struct since *since = bpf_map_lookup_elem(map, &packet);

	if (!since)
		return;
	count(since->slot, since->kind, bpf_ktime_get_ns() - since->at_ns);
	bpf_map_delete_elem(map, &packet);
}

INLINE int is_first(struct sk_buff *packet)
{
	unsigned long entry = FIELD_EXISTS(packet->_nfct) ? packet->_nfct : 0;

	return entry > NFCT_INFOMASK && (entry & NFCT_INFOMASK) == IP_CT_NEW;
}

SEC("tp_btf/net_dev_queue")
int on_queue(u64 *context)
{
	struct sk_buff *packet = (struct sk_buff *)context[0];
	struct whose *whose = end_of(packet->dev);
	struct received *last;
	u32 zero = 0;
	u64 took;

	last = bpf_map_lookup_elem(&received, &zero);
	/* What was made here came by no interface: it may be in the memory of one that did. */
	if (last && last->packet == (u64)packet && packet->skb_iif) {
		took = bpf_ktime_get_ns() - last->at_ns;
		if (last->known)
			count(last->from.slot, is_first(packet) ? FIRST_OUT : FORWARD_OUT, took);
		last->known = 0;
		/* A bridge is an interface on the way to the wire, and not the end of it. */
		if (whose && whose->role == WIRE) {
			count(whose->slot, is_first(packet) ? FIRST_IN : FORWARD_IN, took);
			last->packet = 0;
		}
	}
	if (whose)
		begin(&standing, (u64)packet, whose->slot,
		      whose->role == WIRE ? QUEUE_IN : QUEUE_OUT);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int on_xmit(u64 *context)
{
	end(&standing, context[0]);
	return 0;
}

SEC("tp_btf/netif_rx")
int on_arrival(u64 *context)
{
	struct sk_buff *packet = (struct sk_buff *)context[0];
	struct whose *whose = end_of(packet->dev);

	if (whose)
		begin(&waiting, (u64)packet, whose->slot, whose->role == WIRE ? WAIT_OUT : WAIT_IN);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int on_receive(u64 *context)
{
	struct sk_buff *packet = (struct sk_buff *)context[0];
	struct received *last;
	struct whose *whose;
	u32 zero = 0;

	end(&waiting, (u64)packet);
	last = bpf_map_lookup_elem(&received, &zero);
	/* A bridge that takes a packet for itself has it received once more; it is not new then. */
	if (!last || (last->packet == (u64)packet && packet->skb_iif))
		return 0;
	whose = end_of(packet->dev);
	last->packet = (u64)packet;
	last->at_ns = bpf_ktime_get_ns();
	last->known = whose && whose->role == WIRE;
	if (last->known)
		last->from = *whose;
	return 0;
}

LICENSE_SECTION;
