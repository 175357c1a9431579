/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet is: whose namespace it is in, from where it comes and where it goes. */
#ifndef WHYBOX_PACKETS_H
#define WHYBOX_PACKETS_H

#include "core.h"

#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86dd
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17

#define swap16(number) __builtin_bswap16(number)

/* An address of IPv4 is kept as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), in the order of the network. */
struct address {
	u32 word[4];
};

#define MAPPED __builtin_bswap32(0x0000ffff)

struct flow {
	struct address from, to;
	u16 from_port, to_port; /* by the order of this machine; of ICMP, its type and its code */
	u16 ethertype;
	u8 protocol;
	u8 known; /* FLOW_* */
};

enum { FLOW_ADDRESSES = 1, FLOW_PORTS = 2, FLOW_OPENS = 4 /* the first of a connection */ };

#define TCP_SYN 0x02
#define TCP_ACK 0x10

typedef struct CORE {
	struct net *net;
} possible_net_t;

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
} CORE;

struct in6_addr {
	u8 in6_u[16];
};

struct sock_common {
	u32 skc_daddr, skc_rcv_saddr;
	u16 skc_dport, skc_num;
	u16 skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
} CORE;

struct sock {
	struct sock_common __sk_common;
} CORE;

struct dst_entry {
	struct net_device *dev;
} CORE;

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	unsigned int len;
	int skb_iif;
	u16 protocol, network_header;
	unsigned char *head, *data;
} CORE;

/* What conntrack remembers of a connection, before and after its addresses were changed. Its
 * types may be a module's. */
union nf_inet_addr {
	u32 all[4];
} CORE;

struct nf_conntrack_man {
	union nf_inet_addr u3;
	u16 l3num;
} CORE;

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
} CORE;

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} CORE;

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
} CORE;

INLINE void set_ip4(struct address *to, u32 address)
{
	to->word[0] = to->word[1] = 0;
	to->word[2] = MAPPED;
	to->word[3] = address;
}

INLINE u32 net_of_device(struct net_device *device)
{
	return READ(READ(device, nd_net.net), ns.inum);
}

INLINE u32 net_of_socket(struct sock *socket)
{
	return READ(READ(socket, __sk_common.skc_net.net), ns.inum);
}

/* The first bytes of what IP carries, as far as every protocol here has them. */
struct carried {
	u16 ports[2];
	u8 sequences[8];
	u8 offset, flags; /* of TCP */
};

INLINE int has_ports(u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 1;
	}
	return 0;
}

INLINE void note_ports(struct flow *flow, struct carried *carried)
{
	if (!has_ports(flow->protocol))
		return;
	flow->from_port = swap16(carried->ports[0]);
	flow->to_port = swap16(carried->ports[1]);
	flow->known |= FLOW_PORTS;
	if (flow->protocol == IPPROTO_TCP && (carried->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		flow->known |= FLOW_OPENS;
}

INLINE void note_ip4(struct flow *flow, unsigned char *at)
{
	struct {
		u8 length, service;
		u16 total, id, fragment;
		u8 hops, protocol;
		u16 checksum;
		u32 from, to;
		struct carried carried;
	} header;

	/* A read across the end of a short packet stays in the kernel's memory. */
	if (bpf_probe_read_kernel(&header, sizeof(header), at) || header.length >> 4 != 4)
		return;
	flow->protocol = header.protocol;
	set_ip4(&flow->from, header.from);
	set_ip4(&flow->to, header.to);
	flow->known |= FLOW_ADDRESSES;
	if (header.fragment & swap16(0x1fff)) /* only the first fragment has the ports */
		return;
	if (header.length != 0x45 &&
	    bpf_probe_read_kernel(&header.carried, sizeof(header.carried),
				  at + (header.length & 0xf) * 4))
		return;
	note_ports(flow, &header.carried);
}

INLINE void note_ip6(struct flow *flow, unsigned char *at)
{
	struct {
		u8 version, rest[3];
		u16 length;
		u8 next, hops;
		struct address from, to;
	} header;
	struct carried carried;
	u8 option[2];

	if (bpf_probe_read_kernel(&header, sizeof(header), at) || header.version >> 4 != 6)
		return;
	flow->from = header.from;
	flow->to = header.to;
	flow->known |= FLOW_ADDRESSES;
	at += sizeof(header);
	/* One extension is usual (MLD has hop-by-hop options); a chain of them is not followed. */
	if (header.next == 0 || header.next == 43 || header.next == 60) {
		if (bpf_probe_read_kernel(option, sizeof(option), at))
			return;
		header.next = option[0];
		at += (option[1] + 1) * 8;
	}
	flow->protocol = header.next;
	if (!bpf_probe_read_kernel(&carried, sizeof(carried), at))
		note_ports(flow, &carried);
}

INLINE void note_arp(struct flow *flow, unsigned char *at)
{
	struct {
		u16 kind, protocol;
		u8 hardware_bytes, address_bytes;
		u16 operation;
		u8 from_hardware[6];
		u16 from[2];
		u8 to_hardware[6];
		u16 to[2];
	} header;

	if (bpf_probe_read_kernel(&header, sizeof(header), at) || header.address_bytes != 4 ||
	    header.hardware_bytes != 6)
		return;
	set_ip4(&flow->from, header.from[0] | (u32)header.from[1] << 16);
	set_ip4(&flow->to, header.to[0] | (u32)header.to[1] << 16);
	flow->known |= FLOW_ADDRESSES;
}

/* Who sent a packet to whom, as far as its headers tell. `flow` is all zeros before. The packet
 * itself is read directly, since the kernel vouches for it; what it points to need not be there. */
INLINE void note_flow(struct flow *flow, struct sk_buff *packet)
{
	u16 offset = packet->network_header;
	unsigned char *at;

	flow->ethertype = swap16(packet->protocol);
	/* A driver's packet that was not looked at yet: its data begin behind the Ethernet header. */
	at = offset && offset != 0xffff ? packet->head + offset : packet->data;
	if (flow->ethertype == ETH_P_IP)
		note_ip4(flow, at);
	else if (flow->ethertype == ETH_P_IPV6)
		note_ip6(flow, at);
	else if (flow->ethertype == ETH_P_ARP)
		note_arp(flow, at);
}

/*
 * The namespace that a packet is in. What a received packet waits for in a UDP socket overwrites
 * its device (udp_set_dev_scratch(), net/ipv4/udp.c): such a pointer leads nowhere and reads as 0.
 * What was made here and has no device yet has its socket, else it is the current task's.
 */
INLINE u32 net_of_packet(struct sk_buff *packet, struct net_device *device)
{
	u32 net = device ? net_of_device(device) : 0;

	if (!net)
		net = net_of_socket(READ(packet, sk));
	if (!net)
		net = net_of_device(READ((struct dst_entry *)(packet->_skb_refdst & ~1UL), dev));
	if (!net && !packet->skb_iif)
		net = net_of(current_task());
	return net;
}

#endif
