/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Capabilities that are checked while a task is in a call, and the signal by which seccomp tells a
 * call. To be included when there are struct doing, the map of stacks, and
 * task_in_a_call(), which is NULL for a task that is in none.
 */
#ifndef WHYBOX_CALLCHECKS_H
#define WHYBOX_CALLCHECKS_H

#include "checks.h"

/* A capability was refused to a task that is in a call, or granted, which makes up for others. */
INLINE void checked(struct doing *task, u64 cred, u32 cap, bool refused, s32 stack)
{
	u64 bit = BIT(cap & 63);

	if (!refused) {
		task->refused &= ~made_up_for_by(cap);
		return;
	}
	task->stack = stack;
	if (cred != (u64)READ(checked_task(), real_cred)) {
		task->overridden |= bit;
		return;
	}
	task->refused |= bit;
	if (effective((struct cred *)cred) & bit)
		task->elsewhere |= bit;
}

SEC("tp_btf/cap_capable")
int on_check(u64 *context)
{
	struct doing *task = task_in_a_call();
	bool refused = (s32)context[4] != 0;
	s32 stack = -1;

	if (!task)
		return 0;
	if (refused)
		stack = bpf_get_stackid(context, &stacks, FAST_COMPARE);
	checked(task, context[0], context[3], refused, stack);
	return 0;
}

/* The same where there is no such tracepoint: what was asked, and then what the answer was. The
 * stack is of the beginning: from the end of a function it leads nowhere. */
SEC("kprobe/cap_capable")
int on_check_begin(void *context)
{
	struct doing *task = task_in_a_call();

	if (!task)
		return 0;
	task->cred = ARGUMENT(context, di, 0);
	task->cap = ARGUMENT(context, dx, 2);
	task->asked = bpf_get_stackid(context, &stacks, FAST_COMPARE);
	return 0;
}

SEC("kretprobe/cap_capable")
int on_check_end(void *context)
{
	struct doing *task = task_in_a_call();

	if (!task || !task->cred)
		return 0;
	checked(task, task->cred, task->cap, (s32)RESULT(context), task->asked);
	task->cred = 0;
	return 0;
}

/* The kernel's own siginfo, which user space sees as well: its layout is for ever. */
struct sigsys {
	s32 number, error, code, unused;
	u64 address;
	s32 call;
	u32 architecture;
};

#define MACHINE_64 0x80000000 /* __AUDIT_ARCH_64BIT */

#endif
