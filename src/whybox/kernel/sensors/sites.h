/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where in the kernel a tracepoint was met: a number in `stacks`. Unwinding the stack takes most of a
 * check's time (measured on 6.18: 1.5 us of 2), so a place that was unwound once is known again
 * without: by the call, the capability, how deep the stack is, and the return addresses on the way to
 * who asked, which are found where they were then. How deep it is may be random for each call
 * (CONFIG_RANDOMIZE_KSTACK_OFFSET, 64 steps on x86): then a place is known when all were seen.
 */
#ifndef WHYBOX_SITES_H
#define WHYBOX_SITES_H

#include "checks.h"

#define WORDS 128 /* of the stack, in which the return addresses are looked for */
#define LARGEST_STACK 65536
/* The addresses that are compared. Those before are the tracepoint's own, the same for all; the words
 * between them are left from what ran before and can look like them (measured). */
#define FIRST 4
#define COMPARED 4

struct site {
	u32 call, cap;
	u64 depth;
};

struct seen {
	s32 stack;
	u32 found; /* of the addresses; if it is not all of them, it is unwound each time */
	u64 address[COMPARED];
	u32 at[COMPARED]; /* the number of the word */
};

struct {
	LRU_HASH_OF(struct site, struct seen, 8192);
} sites SEC(".maps");

struct unwinding {
	u64 here;
	u64 bytes; /* of the stack, that were read */
	u64 word[WORDS];
	u64 address[DEEP];
	struct seen seen;
};

struct {
	PERCPU_ARRAY_OF(struct unwinding, 1);
} unwinding SEC(".maps");

/* Look for the return addresses, each beyond the one before. What changes meanwhile stands in memory,
 * where the verifier does not follow it: it would try each number with each word. */
CHECKED_ONCE int find_addresses(void)
{
	u32 zero = 0;
	struct unwinding *all = bpf_map_lookup_elem(&unwinding, &zero);
	struct seen *seen;
	volatile u32 *found;
	volatile u64 *bytes;

	if (!all)
		return 0;
	seen = &all->seen;
	found = &seen->found;
	bytes = &all->bytes;

	for (int i = 0; i < COMPARED; i++)
		seen->address[i] = all->address[FIRST + i];
	for (u32 i = 0; i < WORDS; i++) {
		u32 next = *found;

		if (8 * i >= *bytes || next >= COMPARED || all->word[i] != seen->address[next])
			continue;
		seen->at[next] = i;
		*found = next + 1;
	}
	return 0;
}

INLINE bool are_there(struct unwinding *all, struct seen *seen)
{
	for (int i = 0; i < COMPARED; i++)
		if (all->word[seen->at[i] & (WORDS - 1)] != seen->address[i])
			return false;
	return seen->found == COMPARED;
}

/* `top` is that of the kernel's stack of the task; below it lies what the program was given. */
INLINE s32 stack_of(void *context, u64 top, u32 call, u32 cap)
{
	u32 zero = 0, bytes = WORDS * 8;
	struct unwinding *all = bpf_map_lookup_elem(&unwinding, &zero);
	struct site key = { .call = call, .cap = cap };
	struct seen *seen;
	s32 stack;

	if (!all)
		return -1;
	/* Through memory, which makes a number of a pointer. */
	*(volatile u64 *)&all->here = (u64)context;
	key.depth = top - *(volatile u64 *)&all->here;
	if (key.depth < bytes)
		bytes = key.depth;
	seen = bpf_map_lookup_elem(&sites, &key);
	if (bpf_probe_read_kernel(all->word, bytes, (void *)all->here) == 0 && seen &&
	    are_there(all, seen))
		return seen->stack;
	stack = kept_stack(context);
	if (stack < 0)
		return -1;
	if (key.depth > LARGEST_STACK || (seen && seen->found < COMPARED))
		return stack;
	all->seen.stack = stack;
	all->seen.found = 0;
	all->bytes = bytes;
	if (bpf_get_stack(context, all->address, sizeof(all->address), 0) >= 8 * (FIRST + COMPARED))
		find_addresses();
	bpf_map_update_elem(&sites, &key, &all->seen, 0);
	return stack;
}

#endif
