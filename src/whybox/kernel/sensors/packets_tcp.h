/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The part of packets.bpf.c that looks at TCP connections: retransmits, resets, reordering. */

#define TCP_TIME_WAIT 6
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

struct inet_connection_sock {
	u8 icsk_retransmits;
} CORE;

struct inet_sock {
	u16 inet_sport;
} CORE;

struct tcp_sock {
	u32 srtt_us, total_retrans, reord_seen, dsack_dups, rcv_ooopack, data_segs_out, reordering;
} CORE;

struct request_sock {
	struct sock_common __req_common;
} CORE;

INLINE void note_addresses(struct connection *to, struct sock_common *from)
{
	to->local_port = READ(from, skc_num);
	to->remote_port = swap16(READ(from, skc_dport));
	if (READ(from, skc_family) == AF_INET) {
		set_ip4(&to->local, READ(from, skc_rcv_saddr));
		set_ip4(&to->remote, READ(from, skc_daddr));
		return;
	}
	bpf_probe_read_kernel(&to->local, sizeof(to->local),
			      __builtin_preserve_access_index(&from->skc_v6_rcv_saddr));
	bpf_probe_read_kernel(&to->remote, sizeof(to->remote),
			      __builtin_preserve_access_index(&from->skc_v6_daddr));
}

INLINE struct sock_common *common_of(struct sock *socket)
{
	return (void *)__builtin_preserve_access_index(&socket->__sk_common);
}

/* A closed socket has given its port back (skc_num is 0, __inet_put_port()), but not forgotten it. */
INLINE void note_connection(struct connection *to, struct sock *socket)
{
	note_addresses(to, common_of(socket));
	to->local_port = swap16(READ((struct inet_sock *)socket, inet_sport));
}

INLINE void note_state(struct state *to, struct sock *socket)
{
	struct tcp_sock *tcp = (struct tcp_sock *)socket;

	to->srtt_us = READ(tcp, srtt_us) >> 3;
	to->retransmitted = READ(tcp, total_retrans);
	to->reordered = READ(tcp, reord_seen);
	to->duplicates = READ(tcp, dsack_dups);
	to->early = READ(tcp, rcv_ooopack);
	to->sent = READ(tcp, data_segs_out);
	to->reordering = READ(tcp, reordering);
	to->state = READ(common_of(socket), skc_state);
	to->in_a_row = READ((struct inet_connection_sock *)socket, icsk_retransmits);
}

INLINE struct repeats *repeats_of(struct connection *connection, u64 now)
{
	struct repeats *known = bpf_map_lookup_elem(&connections, connection), fresh = {};

	if (known)
		return known;
	fresh.first_ns = now;
	bpf_map_update_elem(&connections, connection, &fresh, BPF_NOEXIST);
	known = bpf_map_lookup_elem(&connections, connection);
	if (!known)
		no_room_for(NO_ROOM_CONNECTIONS, 1);
	return known;
}

INLINE void tell_repeat(struct connection *connection, struct repeats *sum, u64 now)
{
	struct event *event;

	if (!may_tell(&sum->second, &sum->told, now))
		return;
	event = new_event(now, REPEATED, 0);
	if (!event)
		return;
	event->repeat.connection = *connection;
	event->repeat.state = sum->state;
	event_done(event);
}

/* It runs in whatever task is on the CPU: only the socket says whose it is. */
SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit(u64 *context)
{
	struct sock *socket = (struct sock *)context[0];
	struct connection connection = { .net = net_of_socket(socket) };
	u64 now = bpf_ktime_get_ns();
	struct repeats *sum;

	if (!slot_of_net(connection.net))
		return 0;
	note_connection(&connection, socket);
	sum = repeats_of(&connection, now);
	if (!sum)
		return 0;
	__sync_fetch_and_add(&sum->count, 1);
	sum->last_ns = now;
	note_state(&sum->state, socket);
	if (sum->state.in_a_row > sum->most_in_a_row)
		sum->most_in_a_row = sum->state.in_a_row;
	tell_repeat(&connection, sum, now);
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int on_synack(u64 *context)
{
	struct sock *listener = (struct sock *)context[0];
	struct request_sock *request = (struct request_sock *)context[1];
	struct connection connection = { .net = net_of_socket(listener) };
	u64 now = bpf_ktime_get_ns();
	struct repeats *sum;

	if (!slot_of_net(connection.net))
		return 0;
	note_addresses(&connection,
		       (void *)__builtin_preserve_access_index(&request->__req_common));
	sum = repeats_of(&connection, now);
	if (!sum)
		return 0;
	__sync_fetch_and_add(&sum->synacks, 1);
	sum->last_ns = now;
	sum->state.state = TCP_NEW_SYN_RECV;
	tell_repeat(&connection, sum, now);
	return 0;
}

/* A connection ends: what it had counted. */
SEC("tp_btf/tcp_destroy_sock")
int on_destroy(u64 *context)
{
	struct sock *socket = (struct sock *)context[0];
	struct connection connection = { .net = net_of_socket(socket) };
	struct state state = {};
	struct repeats *sum;
	u64 now;

	if (!slot_of_net(connection.net))
		return 0;
	note_state(&state, socket);
	if (!(state.retransmitted | state.reordered | state.duplicates | state.early))
		return 0;
	note_connection(&connection, socket);
	now = bpf_ktime_get_ns();
	sum = repeats_of(&connection, now);
	if (!sum)
		return 0;
	sum->state = state;
	sum->gone = 1;
	return 0;
}

INLINE void count_reset(struct reset *reset)
{
	u64 one = 1, *known = bpf_map_lookup_elem(&resets, reset);
	struct event *event;

	if (known) {
		__sync_fetch_and_add(known, 1);
		return;
	}
	if (bpf_map_update_elem(&resets, reset, &one, BPF_NOEXIST)) {
		no_room_for(NO_ROOM_RESETS, 1);
		return;
	}
	event = new_event(bpf_ktime_get_ns(), RESET, 0);
	if (event) {
		event->reset = *reset;
		event_done(event);
	}
}

/* The socket is missing where nobody listens, the packet where the reset answers none. */
SEC("tp_btf/tcp_send_reset")
int on_reset_sent(u64 *context)
{
	struct sock *socket = (struct sock *)context[0];
	struct sk_buff *packet = (struct sk_buff *)context[1];
	struct reset reset = { .sent = 1 };
	struct connection *connection = &reset.connection;
	struct flow flow = {};

	if (socket)
		connection->net = net_of_socket(socket);
	else if (packet)
		connection->net = net_of_packet(packet, packet->dev);
	if (!slot_of_net(connection->net))
		return 0;
	if (TYPE_EXISTS(enum sk_rst_reason))
		reset.reason = context[2];
	if (packet)
		note_flow(&flow, packet);
	if (flow.known & FLOW_PORTS && flow.protocol == IPPROTO_TCP) {
		connection->local = flow.to;
		connection->remote = flow.from;
		connection->local_port = flow.to_port;
		connection->remote_port = flow.from_port;
	} else if (socket) {
		note_connection(connection, socket);
	}
	count_reset(&reset);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int on_reset_received(u64 *context)
{
	struct sock *socket = (struct sock *)context[0];
	struct reset reset = {};

	reset.connection.net = net_of_socket(socket);
	if (!slot_of_net(reset.connection.net))
		return 0;
	note_connection(&reset.connection, socket);
	count_reset(&reset);
	return 0;
}

/* All connections of the reader's namespace that have something to tell; bounded by `listed`. */
struct bpf_iter_meta {
	void *seq;
} CORE;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} CORE;

struct listed {
	struct connection connection;
	struct state state;
};

struct {
	ARRAY_OF(u32, 1);
} listed SEC(".maps");

SEC("iter/tcp")
int on_connection(struct bpf_iter__tcp *context)
{
	struct sock_common *common = context->sk_common;
	u32 zero = 0, *count = bpf_map_lookup_elem(&listed, &zero);
	struct listed one = {};
	unsigned char state;

	if (!common || !count || *count >= MOST_LISTED)
		return 0;
	state = READ(common, skc_state);
	if (state == TCP_TIME_WAIT || state == TCP_LISTEN || state == TCP_NEW_SYN_RECV)
		return 0;
	note_state(&one.state, (struct sock *)common);
	if (!(one.state.retransmitted | one.state.reordered | one.state.duplicates |
	      one.state.early))
		return 0;
	one.connection.net = net_of_socket((struct sock *)common);
	note_connection(&one.connection, (struct sock *)common);
	++*count;
	bpf_seq_write(context->meta->seq, &one, sizeof(one));
	return 0;
}
