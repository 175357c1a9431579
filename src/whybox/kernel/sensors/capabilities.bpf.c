/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which capabilities a container's tasks are asked for, where, and whether they were granted.
 *
 * Every check of the kernel ends in cap_capable() (security/commoncap.c). What is alike is counted
 * together; where in the kernel it was asked tells user space what was no use of a right.
 */
#include "events.h"
#include "checks.h"
#include "sites.h"

#define MOST_TASKS 8192

#define CAP_OPT_NOAUDIT BIT(1) /* include/linux/security.h */
#define CAP_OPT_INSETID BIT(2)

enum {
	REFUSED = BIT(0),
	OWN = BIT(1), /* of the task's own credentials, not of others that the kernel took on */
	HELD = BIT(2), /* it is in their effective set */
	ELSEWHERE = BIT(3), /* asked for over a user namespace that is not theirs */
	NOAUDIT = BIT(4), /* it is not meant to be noticed if refused; where that is known */
	ENGINE = BIT(5), /* by the engine, which sets the container up from within */
	MADE_UP_FOR = BIT(6), /* refused, but another that does as well was granted at once */
};

#define SLOT_SHIFT 16 /* whose it is: above the flags, in the same word */

struct check {
	u32 index; /* the call it is in */
	s32 stack;
	u32 cap;
	u32 flags;
};

struct checks {
	u64 count;
	u32 pid, unused;
	char comm[16];
};

struct {
	HASH_OF(struct check, struct checks, 8192);
} checks SEC(".maps");

/* The last check of a task that was refused, where another capability may do as well. */
struct {
	LRU_HASH_OF(u32, struct check, MOST_TASKS);
} refused SEC(".maps");

/* Checks that are going on, where the result is seen apart. */
struct {
	LRU_HASH_OF(u32, struct check, MOST_TASKS);
} going_on SEC(".maps");

INLINE void add(const struct check *key, u64 count)
{
	struct checks *known = bpf_map_lookup_elem(&checks, key), fresh = {};

	if (known) {
		__sync_fetch_and_add(&known->count, count);
		return;
	}
	fresh.count = count;
	fresh.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
	if (bpf_map_update_elem(&checks, key, &fresh, 0))
		count_lost();
}

/* runc's first process in a container is one of its tasks, and has all rights until it runs the
 * program; its name then is "runc:[2:INIT]" (libcontainer/nsenter, nsexec.c). So is crun's. */
INLINE u32 engine(void)
{
	char name[16] = {};
	u64 start;

	bpf_get_current_comm(name, sizeof(name));
	__builtin_memcpy(&start, name, sizeof(start));
	if (start == 0x3a325b3a636e7572) /* "runc:[2:" */
		return ENGINE;
	return (start & 0xffffffffff) == 0x6e757263 /* "crun" */ ? ENGINE : 0;
}

INLINE struct check begun(u32 slot, const struct cred *cred, u64 target, u32 cap, u64 top)
{
	struct task_struct___checked *self = checked_task();
	struct check key = { .cap = cap, .flags = engine() | slot << SLOT_SHIFT };

	key.index = call_at(top);
	if (cred == READ(self, real_cred))
		key.flags |= OWN;
	if (effective(cred) >> (cap & 63) & 1)
		key.flags |= HELD;
	if (target != (u64)READ((struct cred *)cred, user_ns))
		key.flags |= ELSEWHERE;
	return key;
}

/* The check before this one was refused, and this one makes up for it. */
INLINE void make_up(u32 tid, u32 cap)
{
	struct check *before = bpf_map_lookup_elem(&refused, &tid), key;
	struct checks *known;

	if (!before)
		return;
	key = *before;
	bpf_map_delete_elem(&refused, &tid);
	if (!(made_up_for_by(cap) >> (key.cap & 63) & 1))
		return;
	known = bpf_map_lookup_elem(&checks, &key);
	if (known)
		__sync_fetch_and_add(&known->count, -1);
	key.flags |= MADE_UP_FOR;
	add(&key, 1);
}

#define FIRST_OF_TWO (made_up_for_by(CAP_DAC_OVERRIDE) | made_up_for_by(CAP_SYS_ADMIN))

/* Of the same one refused again and again it is known already: to look costs less than to write. */
INLINE void remember(u32 tid, struct check *key)
{
	struct check *known = bpf_map_lookup_elem(&refused, &tid);

	if (!known || known->index != key->index || known->stack != key->stack ||
	    known->cap != key->cap || known->flags != key->flags)
		bpf_map_update_elem(&refused, &tid, key, 0);
}

INLINE void done(u32 tid, struct check *key, bool no)
{
	if (no)
		key->flags |= REFUSED;
	add(key, 1);
	if (!no)
		make_up(tid, key->cap);
	else if (FIRST_OF_TWO >> (key->cap & 63) & 1)
		remember(tid, key);
	else
		bpf_map_delete_elem(&refused, &tid);
}

SEC("tp_btf/cap_capable")
int on_check(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid(), slot = slot_of_current(tid);
	struct check key;
	u64 top;

	if (!slot)
		return 0;
	top = stack_top(checked_task());
	key = begun(slot, (struct cred *)context[0], context[1], context[3], top);
	key.stack = stack_of(context, top, key.index, key.cap);
	done(tid, &key, (s32)context[4]);
	return 0;
}

/* The same where there is no such tracepoint: what was asked, and then what the answer was. */
SEC("kprobe/cap_capable")
int on_check_begin(void *context)
{
	u32 tid = bpf_get_current_pid_tgid(), slot = slot_of_current(tid);
	struct check key;
	u64 options;

	if (!slot)
		return 0;
	options = ARGUMENT(context, cx, 3);
	key = begun(slot, (struct cred *)ARGUMENT(context, di, 0), ARGUMENT(context, si, 1),
		    ARGUMENT(context, dx, 2), stack_top(checked_task()));
	key.stack = kept_stack(context);
	if (options & CAP_OPT_NOAUDIT)
		key.flags |= NOAUDIT;
	bpf_map_update_elem(&going_on, &tid, &key, 0);
	return 0;
}

SEC("kretprobe/cap_capable")
int on_check_end(void *context)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct check *begun, key;

	if (!slot_of_current(tid))
		return 0;
	begun = bpf_map_lookup_elem(&going_on, &tid);
	if (!begun)
		return 0;
	key = *begun;
	bpf_map_delete_elem(&going_on, &tid);
	done(tid, &key, (s32)RESULT(context));
	return 0;
}

LICENSE_SECTION;
