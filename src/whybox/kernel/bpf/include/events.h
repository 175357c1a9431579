/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a program tells of single events: a ring that user space reads in order, and the count of
 * those for which there was no room. Nothing waits for the reader.
 */
#ifndef WHYBOX_EVENTS_H
#define WHYBOX_EVENTS_H

#include "helpers.h"

#ifndef EVENTS_BYTES
#define EVENTS_BYTES (1 << 18)
#endif

struct {
	RING_OF(EVENTS_BYTES);
} events SEC(".maps");

struct {
	PERCPU_ARRAY_OF(u64, 1);
} lost SEC(".maps");

INLINE void count_lost(void)
{
	u32 zero = 0;
	u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		++*count;
}

/* Room for one event, or NULL, which is then counted. The room is not cleared. */
INLINE void *event_room(u64 bytes)
{
	void *room = bpf_ringbuf_reserve(&events, bytes, 0);

	if (!room)
		count_lost();
	return room;
}

INLINE void event_done(void *room)
{
	bpf_ringbuf_submit(room, 0);
}

#endif
