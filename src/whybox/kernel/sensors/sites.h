/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where in the kernel a capability was asked for: a number in `stacks`. Unwinding the stack takes
 * most of a check's time (measured on 6.18: 1.5 us of 2), so a place that was unwound once is known
 * again without: by the call, the capability, how deep the stack is, and by two return addresses
 * that are found where they were then. How deep it is may be random for each call
 * (CONFIG_RANDOMIZE_KSTACK_OFFSET, 64 steps on x86): then a place is known again when all were seen.
 */
#ifndef WHYBOX_SITES_H
#define WHYBOX_SITES_H

#include "checks.h"

#define WORDS 160 /* of the stack are searched for the return addresses */
#define LARGEST_STACK 65536
/* Of the frames that are compared; the ones before it are those of every check. */
#define FIRST 6

struct site {
	u32 call, cap;
	u64 depth;
};

struct seen {
	s32 stack;
	u32 known; /* whether the return addresses were found; if not, it is unwound each time */
	u32 offset[2];
	u64 address[2];
};

struct {
	LRU_HASH_OF(struct site, struct seen, 8192);
} sites SEC(".maps");

struct unwinding {
	u64 here;
	u64 address[DEEP];
	u64 word[WORDS];
};

struct {
	PERCPU_ARRAY_OF(struct unwinding, 1);
} unwinding SEC(".maps");

INLINE s32 unwound(void *context)
{
	s32 number = bpf_get_stackid(context, &stacks, FAST_COMPARE);

	return number < 0 ? -1 : number;
}

/* Look for both return addresses, the second beyond the first. */
INLINE bool found_in_words(struct unwinding *all, u32 words, struct seen *seen)
{
	u64 wanted = all->address[FIRST];
	u32 found = 0;

	seen->address[0] = wanted;
	for (u32 i = 0; i < WORDS && i < words && found < 2; i++) {
		if (all->word[i] != wanted)
			continue;
		seen->offset[found & 1] = 8 * i;
		wanted = seen->address[1];
		found++;
	}
	return found == 2;
}

static __attribute__((noinline)) s32 learned(void *context, const struct site *site)
{
	u32 zero = 0, bytes = WORDS * 8;
	struct unwinding *all = bpf_map_lookup_elem(&unwinding, &zero);
	struct seen seen = {};
	struct site key;
	s64 frames;

	if (!all || !site)
		return unwound(context);
	key = *site;
	seen.stack = unwound(context);
	if (seen.stack < 0 || key.depth > LARGEST_STACK)
		return seen.stack;
	frames = bpf_get_stack(context, all->address, sizeof(all->address), 0) >> 3;
	seen.address[1] = all->address[frames > FIRST + 3 ? FIRST + 3 : FIRST + 1];
	if (key.depth < bytes)
		bytes = key.depth;
	if (frames > FIRST + 1 && !bpf_probe_read_kernel(all->word, bytes, (void *)all->here))
		seen.known = found_in_words(all, bytes / 8, &seen);
	bpf_map_update_elem(&sites, &key, &seen, 0);
	return seen.stack;
}

INLINE bool is_there(u64 here, struct seen *seen, u32 nth)
{
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)(here + seen->offset[nth]));
	return word == seen->address[nth];
}

/* `top` is that of the kernel's stack of the task; below it lies what the program was given. */
INLINE s32 stack_of(void *context, u64 top, u32 call, u32 cap)
{
	u32 zero = 0;
	struct unwinding *all = bpf_map_lookup_elem(&unwinding, &zero);
	struct site key = { .call = call, .cap = cap };
	struct seen *seen;
	u64 here;

	if (!all)
		return unwound(context);
	/* Through memory, which makes a number of a pointer. */
	*(volatile u64 *)&all->here = (u64)context;
	here = *(volatile u64 *)&all->here;
	key.depth = top - here;
	seen = bpf_map_lookup_elem(&sites, &key);
	if (!seen)
		return learned(context, &key);
	if (!seen->known)
		return unwound(context);
	if (is_there(here, seen, 0) && is_there(here, seen, 1))
		return seen->stack;
	return learned(context, &key);
}

#endif
