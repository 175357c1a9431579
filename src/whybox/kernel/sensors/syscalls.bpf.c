/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The system calls of a container: how many, how long, with which errors, and who refused them.
 *
 * A call that seccomp refuses leaves the kernel (sys_exit) and never entered it (sys_enter): the
 * filter runs first (kernel/entry, syscall_trace_enter()). One that entered and was refused a
 * capability in between was refused for want of it. The rule is exact, so long as no event of a
 * task can be missing: a task's first exit is therefore doubted, since it may have been in the call
 * when the programs were attached, and sys_enter is attached before sys_exit.
 */
#include "checks.h"
#include "denials.h"

#define SLOTS 32
#define FIRST_POWER 6 /* bucket[0] is everything below 2^7 ns */
#define MOST_TASKS 16384

#define EPERM 1
#define EACCES 13
#define SIGSYS 31
#define SYS_SECCOMP 1 /* include/uapi/asm-generic/siginfo.h */
#define SECCOMP_MODE_FILTER 2
#define SIGNAL_GROUP_EXIT 4

struct calls {
	u64 count, errors, sum_ns, longest_ns;
	u32 bucket[SLOTS];
};

struct {
	PERCPU_ARRAY_OF(struct calls, 2 * EVERY_CALL);
} calls SEC(".maps");

struct failure {
	u32 index, error;
};

struct {
	HASH_OF(struct failure, u64, 8192);
} failures SEC(".maps");

/* A task of which an event was seen. */
struct doing {
	u64 at_ns; /* when it entered the call; 0: it is in none */
	u32 index;
	s32 stack; /* where a capability was refused */
	u64 refused; /* capabilities, of its own credentials */
	u64 overridden; /* of others that the kernel took on for it */
	u64 elsewhere; /* of refused, those that it holds, but not where they were asked for */
	u64 cred; /* a check that is going on, where its result is seen apart */
	u32 cap;
	s32 asked; /* and where it was made */
	u32 trapped; /* by which call, and one; 0: it is not */
	u32 unused;
};

struct {
	HASH_OF(u32, struct doing, MOST_TASKS);
} tasks SEC(".maps");

/* Processes of which it is known that seccomp ended them. */
struct {
	LRU_HASH_OF(u32, u32, 1024);
} ended SEC(".maps");

/* From which length on a call is told. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

INLINE struct doing *task_of(u32 tid)
{
	return bpf_map_lookup_elem(&tasks, &tid);
}

INLINE struct doing *new_task(u32 tid)
{
	struct doing fresh = {};

	if (bpf_map_update_elem(&tasks, &tid, &fresh, 0))
		count_lost();
	return bpf_map_lookup_elem(&tasks, &tid);
}

INLINE u32 call_of(u64 registers, s64 number)
{
	if (ON_X86) /* __USER32_CS: a 32-bit program */
		return index_of(number, (((struct pt_regs___x86 *)registers)->cs & 0xffff) == 0x23);
	return index_of(number, ((struct pt_regs___arm64 *)registers)->pstate & 0x10);
}

INLINE s64 number_of(u64 registers)
{
	if (ON_X86)
		return ((struct pt_regs___x86 *)registers)->orig_ax;
	return ((struct pt_regs___arm64 *)registers)->syscallno;
}

SEC("tp_btf/sys_enter")
int on_enter(u64 *context)
{
	u64 who = bpf_get_current_pid_tgid();
	u32 tid = who;
	struct doing *task;

	if (!slot_of_current(tid))
		return 0;
	task = task_of(tid);
	if (!task)
		task = new_task(tid);
	if (!task)
		return 0;
	if (task->trapped) {
		struct denial what = { .index = task->trapped - 1, .kind = TRAPPED };

		task->trapped = 0;
		note_denial(who, &what, 0);
	}
	task->index = call_of(context[0], context[1]);
	task->refused = task->overridden = task->elsewhere = 0;
	task->stack = -1;
	task->at_ns = bpf_ktime_get_ns();
	return 0;
}

INLINE void count_failure(u32 index, u32 error)
{
	struct failure key = { .index = index, .error = error };
	u64 *count = bpf_map_lookup_elem(&failures, &key), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else if (bpf_map_update_elem(&failures, &key, &one, 0))
		count_lost();
}

INLINE void count_call(u32 index, u64 took, u32 error)
{
	struct calls *mine = bpf_map_lookup_elem(&calls, &index);
	u32 power = log2(took), bucket = power > FIRST_POWER ? power - FIRST_POWER : 0;

	if (!mine)
		return;
	mine->bucket[bucket < SLOTS ? bucket : SLOTS - 1]++;
	mine->count++;
	mine->sum_ns += took;
	if (took > mine->longest_ns)
		mine->longest_ns = took;
	if (!error)
		return;
	mine->errors++;
	count_failure(index, error);
}

INLINE void left(u64 who, struct doing *task, s64 result, u32 error)
{
	u64 now = bpf_ktime_get_ns(), took = now - task->at_ns, *limit;
	struct denial what = { .index = task->index, .error = error, .stack = -1 };
	u32 zero = 0;

	task->at_ns = 0;
	count_call(task->index, took, error);
	if (error == EPERM || error == EACCES) {
		what.kind = ENTERED;
		what.refused = task->refused;
		what.overridden = task->overridden;
		what.elsewhere = task->elsewhere;
		what.stack = task->stack;
		note_denial(who, &what, result);
	}
	limit = bpf_map_lookup_elem(&slower, &zero);
	if (limit && *limit && took >= *limit) {
		what.kind = SLOW;
		tell(who, &what, result, now, took);
	}
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	u64 who = bpf_get_current_pid_tgid();
	s64 result = context[1];
	struct denial what = { .stack = -1 };
	u32 tid = who, error;
	struct doing *task;

	if (!slot_of_current(tid))
		return 0;
	error = result < 0 && result >= -4095 ? -result : 0;
	task = task_of(tid);
	if (task && task->at_ns) {
		left(who, task, result, error);
		return 0;
	}
	if (error) {
		what.index = call_of(context[0], number_of(context[0]));
		what.error = error;
		if (READ(checked_task(), seccomp.mode) != SECCOMP_MODE_FILTER)
			what.kind = SKIPPED;
		else
			what.kind = task ? SECCOMP : DOUBTED;
		if (task || what.kind == DOUBTED)
			note_denial(who, &what, result);
	}
	if (task)
		return 0;
	task = new_task(tid);
	if (task)
		task->index = call_of(context[0], number_of(context[0]));
	return 0;
}

INLINE struct doing *task_in_a_call(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct doing *task;

	if (!slot_of_current(tid))
		return NULL;
	task = task_of(tid);
	return task && task->at_ns ? task : NULL;
}

#include "callchecks.h"

SEC("tp_btf/signal_generate")
int on_signal(u64 *context)
{
	u64 who = bpf_get_current_pid_tgid();
	u32 tid = who, pid = who >> 32, one = 1;
	struct sigsys info = {};
	struct doing *task;

	if ((s32)context[0] != SIGSYS || context[1] <= 2 || !slot_of_current(tid))
		return 0;
	bpf_probe_read_kernel(&info, sizeof(info), (void *)context[1]);
	if (info.code != SYS_SECCOMP)
		return 0;
	task = task_of(tid);
	if (!task)
		task = new_task(tid);
	if (task)
		task->trapped = 1 + index_of(info.call, !(info.architecture & MACHINE_64));
	bpf_map_update_elem(&ended, &pid, &one, 0);
	return 0;
}

/* Whether seccomp ended this one without a signal, as it does with one thread of several
 * (kernel/seccomp.c, SECCOMP_RET_KILL_THREAD), and on 5.10 with all (measured). Threads that end
 * along with it were ended by that one: the call that they are in is one that they had entered. */
INLINE bool ended_silently(u32 pid, struct doing *task, struct task_struct___checked *self,
			   u32 call)
{
	u32 one = 1;

	if (READ(self, seccomp.mode) < SECCOMP_MODE_FILTER || (task && task->at_ns))
		return false;
	if (!(READ(READ(self, signal), flags) & SIGNAL_GROUP_EXIT))
		return true;
	if (!task || task->index == call)
		return false;
	return bpf_map_update_elem(&ended, &pid, &one, 1 /* BPF_NOEXIST */) == 0;
}

SEC("tp_btf/sched_process_exit")
int on_end(u64 *context)
{
	u64 who = bpf_get_current_pid_tgid();
	u32 tid = who;
	struct task_struct___checked *self = checked_task();
	struct denial what = { .kind = KILLED, .index = NO_CALL };
	struct doing *task;
	u32 call;

	if (!slot_of_current(tid))
		return 0;
	task = task_of(tid);
	if ((READ(self, exit_code) & 0x7f) == SIGSYS) {
		call = current_call(self);
		if (task && task->trapped)
			what.index = task->trapped - 1;
		else if (ended_silently(who >> 32, task, self, call))
			what.index = call;
		if (what.index != NO_CALL)
			note_denial(who, &what, 0);
	}
	bpf_map_delete_elem(&tasks, &tid);
	return 0;
}

LICENSE_SECTION;
