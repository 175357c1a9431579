/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every command that is executed in a container, who started it, those that failed, and how those
 * that were seen to begin ended.
 */
#define EVENTS_BYTES (1 << 21)
#include "events.h"
#include "scope.h"

#define PATH_BYTES 160
#define ARGS_BYTES 512
#define FAILED_ARGS 6
#define ARG_BYTES 128

enum kind { EXECUTED, FAILED, ENDED };

struct cred {
	struct {
		u32 val;
	} uid, euid;
} CORE;

struct mm_struct {
	u64 arg_start, arg_end;
} CORE;

struct signal_struct {
	struct {
		int counter;
	} live;
} CORE;

struct task_struct___exec {
	struct cred *cred;
	struct mm_struct *mm;
	struct signal_struct *signal;
	int exit_code;
} CORE;

struct linux_binprm {
	const char *filename;
} CORE;

/* What every event begins with. */
struct head {
	u64 at_ns;
	u32 kind, slot;
	u32 pid, nspid;
	s32 code; /* FAILED: the errno; ENDED: as wait(2) has it */
	u32 pad;
};

struct ended {
	struct head head;
	u64 began_ns;
};

struct command {
	struct head head;
	u32 uid, euid;
	u32 parent_pid;
	u32 parent_slot; /* 0: it is not in the container */
	u32 args_bytes; /* all of them, of which `args` has the first */
	u32 args_got;
	char comm[16], parent_comm[16];
	char path[PATH_BYTES];
	char args[ARGS_BYTES];
};

/* The arguments of an execve(2) that is under way. */
struct attempt {
	u64 path, argv;
};

struct {
	LRU_HASH_OF(u32, struct attempt, 4096);
} attempts SEC(".maps");

/* When the commands began that have not ended. A storm pushes the oldest out. */
struct {
	LRU_HASH_OF(u32, u64, 16384);
} running SEC(".maps");

INLINE u32 nspid_of(struct task_struct *task)
{
	struct pid *pid = READ(task, thread_pid);
	u32 level = READ(pid, level);
	u32 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number),
			      (void *)__builtin_preserve_access_index(&pid->numbers[0].nr) +
				      __builtin_preserve_type_info(*(struct upid *)0, 1) * level);
	return number;
}

INLINE void begin(struct head *head, u32 kind, u32 slot, struct task_struct *task)
{
	head->at_ns = bpf_ktime_get_ns();
	head->kind = kind;
	head->slot = slot;
	head->pid = READ(task, tgid);
	head->nspid = nspid_of(READ(task, group_leader));
	head->code = 0;
	head->pad = 0;
}

INLINE void describe(struct command *event, struct task_struct *task)
{
	struct cred *cred = READ((struct task_struct___exec *)task, cred);
	struct task_struct *parent = READ(task, real_parent);

	event->uid = READ(cred, uid.val);
	event->euid = READ(cred, euid.val);
	event->parent_pid = READ(parent, tgid);
	event->parent_slot = slot_of(parent);
	READ_STR(event->comm, task, comm);
	READ_STR(event->parent_comm, READ(parent, group_leader), comm);
}

SEC("tp_btf/sched_process_exec")
int on_exec(u64 *context)
{
	struct task_struct *task = (struct task_struct *)context[0];
	struct linux_binprm *program = (struct linux_binprm *)context[2];
	u32 slot = slot_of(task), tgid;
	struct command *event;
	struct mm_struct *mm;
	u64 from, bytes, now;

	if (!slot)
		return 0;
	tgid = READ(task, tgid);
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&running, &tgid, &now, 0);
	event = event_room(sizeof(*event));
	if (!event)
		return 0;
	begin(&event->head, EXECUTED, slot, task);
	describe(event, task);
	event->path[0] = 0;
	bpf_probe_read_kernel_str(event->path, PATH_BYTES, READ(program, filename));
	mm = READ((struct task_struct___exec *)task, mm);
	from = READ(mm, arg_start);
	bytes = READ(mm, arg_end) - from;
	event->args_bytes = bytes;
	if (bytes > ARGS_BYTES)
		bytes = ARGS_BYTES;
	event->args_got = bytes;
	/* The kernel has just written them there, so the pages are in memory. */
	if (bpf_probe_read_user(event->args, bytes, (void *)from))
		event->args_got = 0;
	event_done(event);
	return 0;
}

INLINE void entered(u64 path, u64 argv)
{
	struct attempt one = { .path = path, .argv = argv };
	u32 tid = bpf_get_current_pid_tgid();

	if (slot_of(current_task()))
		bpf_map_update_elem(&attempts, &tid, &one, 0);
}

/* What was not to be executed has its arguments where the program put them. Looked at when the call
 * has failed, the name is in memory, for the kernel has read it. */
INLINE void read_failed(struct command *event, struct attempt *one)
{
	u64 at = 0;
	u32 whole = 0, cut = 0;

	event->path[0] = 0;
	bpf_probe_read_user_str(event->path, PATH_BYTES, (void *)one->path);
	for (int i = 0; i < FAILED_ARGS; i++) {
		u64 argument = 0;
		s64 got;

		bpf_probe_read_user(&argument, sizeof(argument), (void *)(one->argv + 8 * i));
		if (!argument)
			whole = 1;
		if (!argument || at > ARGS_BYTES - ARG_BYTES)
			break;
		got = bpf_probe_read_user_str(event->args + at, ARG_BYTES, (void *)argument);
		if (got <= 0 || got > ARG_BYTES)
			break;
		cut |= got == ARG_BYTES;
		at += got;
	}
	event->args_got = at;
	event->args_bytes = at + (cut || !whole);
}

INLINE void left(s64 result)
{
	u32 tid = bpf_get_current_pid_tgid(), slot;
	struct attempt *found, one;
	struct command *event;

	if (result >= 0)
		return;
	found = bpf_map_lookup_elem(&attempts, &tid);
	if (!found)
		return;
	one = *found;
	bpf_map_delete_elem(&attempts, &tid);
	slot = slot_of(current_task());
	if (!slot)
		return;
	event = event_room(sizeof(*event));
	if (!event)
		return;
	begin(&event->head, FAILED, slot, current_task());
	describe(event, current_task());
	event->head.code = -result;
	read_failed(event, &one);
	event_done(event);
}

/* include/trace/trace_events.h and kernel/trace/trace.h, struct syscall_trace_enter: what perf
 * gives a program for a system call is eight bytes of its own, the number, then the arguments. */
struct call {
	u64 own;
	s64 number;
	u64 argument[6];
};

struct result {
	u64 own;
	s64 number, result;
};

SEC("tracepoint/syscalls/sys_enter_execve")
int on_execve(struct call *call)
{
	entered(call->argument[0], call->argument[1]);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_execveat")
int on_execveat(struct call *call)
{
	entered(call->argument[1], call->argument[2]);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_execve")
int after_execve(struct result *result)
{
	left(result->result);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_execveat")
int after_execveat(struct result *result)
{
	left(result->result);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int on_exit(u64 *context)
{
	struct task_struct *task = (struct task_struct *)context[0];
	u32 tgid = READ(task, tgid);
	u64 *found = bpf_map_lookup_elem(&running, &tgid), began;
	struct ended *event;

	/* The process ends with the last of its threads, whichever that is. */
	if (!found || READ(READ((struct task_struct___exec *)task, signal), live.counter) > 0)
		return 0;
	began = *found;
	bpf_map_delete_elem(&running, &tgid);
	event = event_room(sizeof(*event));
	if (!event)
		return 0;
	begin(&event->head, ENDED, slot_of(task), task);
	event->head.code = READ((struct task_struct___exec *)task, exit_code);
	event->began_ns = began;
	event_done(event);
	return 0;
}

LICENSE_SECTION;
