/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where packets of a container are dropped, and which of its TCP connections repeat themselves.
 *
 * A packet is the container's if it is in its network namespace, if one of its addresses sends or
 * receives it, wherever that is, or if it is at the host's end of its wire; and if conntrack knows
 * that it was, before its address was changed. All are summed here by where they are dropped and
 * why; of each such sum, only the first few of a second are told one by one.
 */
#include "events.h"
#include "packets.h"
#include "scope.h"

#define MOST_SUMS 4096
#define MOST_RESETS 1024
#define MOST_ADDRESSES 1024
#define MOST_WIRES 256
#define MOST_TOLD 10
#define MOST_LISTED 20000

/* Why a packet is the container's; and whether it is the first of a TCP connection. */
enum { IN_NETNS = 1, ON_WIRE = 2, FROM_IT = 4, TO_IT = 8, BY_NAT = 16, OPENS = 32 };

/* Since commit c504e5c2f964 ("net: skb: introduce kfree_skb_reason()") (in v5.17). */
enum skb_drop_reason { SKB_DROP_REASON_NOT_SPECIFIED = 1 };

/* Since v6.10. */
enum sk_rst_reason { SK_RST_REASON_NOT_SPECIFIED };

struct place {
	u64 location;
	u32 net, ifindex, reason;
	u16 ethertype;
	u8 protocol, why;
};

struct drops {
	u64 count, bytes, first_ns, last_ns, second;
	u32 told, pad;
	struct flow flow; /* of the first */
	char device[16];
};

struct {
	HASH_OF(struct place, struct drops, MOST_SUMS);
} drops SEC(".maps");

struct {
	HASH_OF(struct address, u32, MOST_ADDRESSES);
} addresses SEC(".maps");

struct wire {
	u32 net, ifindex;
};

struct {
	HASH_OF(struct wire, u32, MOST_WIRES);
} wires SEC(".maps");

/* What was counted by nothing else, since the maps were full. */
enum { NO_ROOM_DROPS, NO_ROOM_BYTES, NO_ROOM_CONNECTIONS, NO_ROOM_RESETS, NO_ROOM };

struct {
	PERCPU_ARRAY_OF(u64, NO_ROOM);
} no_room SEC(".maps");

struct connection {
	u32 net;
	u16 local_port, remote_port;
	struct address local, remote;
};

/* Counts of a connection since it began (include/linux/tcp.h). */
struct state {
	u32 srtt_us, retransmitted, reordered, duplicates, early, sent, state, in_a_row, reordering;
};

struct repeats {
	u64 count, synacks, first_ns, last_ns, second;
	u32 told, most_in_a_row;
	struct state state;
	u32 gone;
};

struct {
	HASH_OF(struct connection, struct repeats, MOST_SUMS);
} connections SEC(".maps");

struct reset {
	struct connection connection;
	u32 sent, reason;
};

struct {
	HASH_OF(struct reset, u64, MOST_RESETS);
} resets SEC(".maps");

enum { DROPPED = 1, REPEATED, RESET };

struct event {
	u64 at_ns;
	u32 kind, bytes;
	union {
		struct {
			struct place place;
			struct flow flow;
			char device[16];
		} drop;
		struct {
			struct connection connection;
			struct state state;
		} repeat;
		struct reset reset;
	};
};

INLINE void no_room_for(u32 what, u64 amount)
{
	u64 *count = bpf_map_lookup_elem(&no_room, &what);

	if (count)
		*count += amount;
}

/* Whether one more may be told in this second (of 2^30 ns). A race tells one more or less. */
INLINE int may_tell(u64 *second, u32 *told, u64 now)
{
	if (*second != now >> 30) {
		*second = now >> 30;
		*told = 0;
	}
	return (*told)++ < MOST_TOLD;
}

INLINE struct event *new_event(u64 now, u32 kind, u32 bytes)
{
	struct event *event = event_room(sizeof(*event));

	if (event) {
		event->at_ns = now;
		event->kind = kind;
		event->bytes = bytes;
	}
	return event;
}

INLINE int is_its(struct address *address)
{
	return bpf_map_lookup_elem(&addresses, address) != NULL;
}

/* Conntrack's two views: the sender as it was, and who answers (the target of a published port). */
INLINE int is_its_by_nat(struct sk_buff *packet)
{
	struct nf_conntrack_man man[2];
	struct address address;
	struct nf_conn *known;

	if (!FIELD_EXISTS(packet->_nfct) || !TYPE_EXISTS(struct nf_conn))
		return 0;
	known = (struct nf_conn *)(READ(packet, _nfct) & ~7UL);
	if (!known)
		return 0;
	for (int i = 0; i < 2; i++) {
		struct nf_conntrack_man *src = i ? __builtin_preserve_access_index(
							   &known->tuplehash[1].tuple.src) :
						   __builtin_preserve_access_index(
							   &known->tuplehash[0].tuple.src);
		union nf_inet_addr of = READ(src, u3);

		if (READ(src, l3num) == AF_INET)
			set_ip4(&address, of.all[0]);
		else
			__builtin_memcpy(&address, &of, sizeof(address));
		if (is_its(&address))
			return 1;
	}
	return 0;
}

INLINE u8 why_its(struct sk_buff *packet, struct place *place, struct flow *flow)
{
	struct wire wire = { .net = place->net, .ifindex = place->ifindex };
	u8 why = slot_of_net(place->net) ? IN_NETNS : 0;

	if (flow->known) {
		if (is_its(&flow->from))
			why |= FROM_IT;
		if (is_its(&flow->to))
			why |= TO_IT;
	}
	if (why)
		return why;
	if (bpf_map_lookup_elem(&wires, &wire))
		return ON_WIRE;
	return is_its_by_nat(packet) ? BY_NAT : 0;
}

/* Messages of unix, netlink or vsock sockets are no packets. */
INLINE int is_message(struct sk_buff *packet, struct net_device *device)
{
	struct sock *socket = READ(packet, sk);
	u16 family;

	if (!socket)
		return !device && !packet->protocol;
	family = READ(socket, __sk_common.skc_family);
	return family != AF_INET && family != AF_INET6 && family != AF_PACKET;
}

INLINE struct drops *sum_of(struct place *place, struct flow *flow, struct net_device *device,
			    u64 now)
{
	struct drops *known = bpf_map_lookup_elem(&drops, place), fresh = {};

	if (known)
		return known;
	fresh.first_ns = now;
	fresh.flow = *flow;
	if (place->ifindex)
		READ_STR(fresh.device, device, name);
	bpf_map_update_elem(&drops, place, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&drops, place);
}

INLINE void tell_drop(struct place *place, struct flow *flow, struct drops *sum, u64 now, u32 bytes)
{
	struct event *event = new_event(now, DROPPED, bytes);

	if (!event)
		return;
	event->drop.place = *place;
	event->drop.flow = *flow;
	__builtin_memcpy(event->drop.device, sum->device, sizeof(event->drop.device));
	event_done(event);
}

SEC("tp_btf/kfree_skb")
int on_drop(u64 *context)
{
	struct sk_buff *packet = (struct sk_buff *)context[0];
	struct net_device *device = packet->dev;
	struct place place = {};
	struct flow flow = {};
	struct drops *sum;
	u32 bytes;
	u64 now;

	if (is_message(packet, device))
		return 0;
	place.net = net_of_packet(packet, device);
	/* Of what is no device, nothing is read but zeros, and so no index. */
	if (device)
		place.ifindex = READ(device, ifindex);
	note_flow(&flow, packet);
	place.why = why_its(packet, &place, &flow);
	if (!place.why)
		return 0;
	if (flow.known & FLOW_OPENS)
		place.why |= OPENS;
	place.location = context[1];
	if (TYPE_EXISTS(enum skb_drop_reason))
		place.reason = context[2];
	place.ethertype = flow.ethertype;
	place.protocol = flow.protocol;
	bytes = packet->len;
	now = bpf_ktime_get_ns();
	sum = sum_of(&place, &flow, device, now);
	if (!sum) {
		no_room_for(NO_ROOM_DROPS, 1);
		no_room_for(NO_ROOM_BYTES, bytes);
		return 0;
	}
	__sync_fetch_and_add(&sum->count, 1);
	__sync_fetch_and_add(&sum->bytes, bytes);
	sum->last_ns = now;
	if (may_tell(&sum->second, &sum->told, now))
		tell_drop(&place, &flow, sum, now, bytes);
	return 0;
}

#include "packets_tcp.h"

LICENSE_SECTION;
