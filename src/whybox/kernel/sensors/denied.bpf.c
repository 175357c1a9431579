/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls of a container that were not permitted (EPERM, EACCES, EROFS; of calls about ids EINVAL), with
 * what it takes to tell which gate refused them: whether the call entered the kernel (seccomp), the
 * capabilities that were asked for in vain, who asked, the path, and the file. And what became of
 * it: whether the same thread then got the same thing in another way, and how its process ended.
 */
#define EVENTS_BYTES (1 << 20)
#include "checks.h"
#include "events.h"

#define MOST_TASKS 16384
#define MOST_CALLS 512
#define SECOND 1000000000ULL
#define MOST_TOLD 12 /* of one call by one process in a second */
#define MOST_GROUPS 16
#define PATH_BYTES 256
#define PENDING 4
/* A function that the verifier looks at once, whoever calls it: its arguments are mere numbers. */
#define ONCE __attribute__((noinline))
#define NEAR 24 /* so many calls later it is still an answer to the refusal */

#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define EROFS 30
#define SIGSYS 31
#define SYS_SECCOMP 1 /* include/uapi/asm-generic/siginfo.h */
#define SECCOMP_MODE_FILTER 2
#define CAP_NET_ADMIN 12
#define NOWHERE 0xff

/* Of kind of an event: how a call was refused, or what became of who was refused. */
enum kind { SECCOMP = 1, ENTERED, TRAPPED, KILLED, ANSWERED, MADE_GOOD, ENDED };

/* What is known of a call; user space fills it in by the names (sensors/denied.py). */
enum about { PLAIN, IDS = 1, NETLINK = 2, EXECUTES = 4 };

struct call {
	u8 path, path2; /* which argument; NOWHERE: none */
	u8 at; /* the directory that the path begins in */
	u8 file; /* a descriptor */
	u8 address; /* a socket's, whose length is the next argument */
	u8 about;
	u8 unused[2];
};

struct {
	ARRAY_OF(struct call, MOST_CALLS);
} calls SEC(".maps");

struct kuid {
	u32 val;
};

struct group_info {
	int ngroups;
	struct kuid gid[1];
} CORE;

struct user_namespace {
	struct ns_common ns;
} CORE;

struct cred___ids {
	struct kuid uid, euid, fsuid, fsgid;
	struct group_info *group_info;
	struct user_namespace *user_ns;
} CORE;

struct super_block {
	u32 s_dev;
} CORE;

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned short i_mode;
} CORE;

struct qstr {
	const char *name;
} CORE;

struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
} CORE;

struct vfsmount {
	int mnt_flags;
} CORE;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} CORE;

struct file {
	struct path f_path;
	struct inode *f_inode;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct fs_struct {
	struct path pwd;
} CORE;

struct signal_struct___live {
	struct {
		int counter;
	} live;
} CORE;

struct task_struct___denied {
	const struct cred *cred;
	struct files_struct *files;
	struct fs_struct *fs;
	struct signal_struct___live *signal;
} CORE;

/* A refusal that may yet be made good. */
struct pending {
	u64 hash; /* of the path; of a call without one, of its first argument */
	u64 seq;
	u32 index;
	u32 at_call;
};

struct doing {
	u32 inside; /* whether it is in a call, which was seen to enter */
	u32 index;
	s32 stack;
	u32 calls; /* so far */
	u64 refused, overridden, elsewhere;
	u64 cred; /* a check that is going on, where its result is seen apart */
	u32 cap;
	s32 asked;
	u64 count; /* of pending ones, ever */
	struct pending pending[PENDING];
};

struct {
	HASH_OF(u32, struct doing, MOST_TASKS);
} tasks SEC(".maps");

/* Processes that were refused something, with the last time. */
struct {
	LRU_HASH_OF(u32, u64, 4096);
} refusers SEC(".maps");

struct whose {
	u32 pid, index;
};

struct pace {
	u64 since_ns, count;
};

struct {
	LRU_HASH_OF(struct whose, struct pace, 4096);
} paces SEC(".maps");

/* Refusals that were not told one by one, by slot. */
struct {
	HASH_OF(u32, u64, 4096);
} untold SEC(".maps");

struct scratch {
	u64 words[PATH_BYTES / 8];
	struct doing fresh;
};

struct {
	PERCPU_ARRAY_OF(struct scratch, 1);
} scratch SEC(".maps");

struct {
	PERCPU_ARRAY_OF(u64, 1);
} numbers SEC(".maps");

struct place {
	u64 inode;
	u32 device, flags; /* of the mount */
	u32 mode, known;
	char name[40];
};

struct event {
	u64 at_ns, seq;
	u32 slot, kind;
	u32 index;
	s32 error; /* of ENDED the exit code, as wait(2) has it */
	u32 pid, tid, parent;
	s32 stack;
	u64 refused, overridden, elsewhere;
	u64 arguments[6];
	u64 held;
	u32 uid, euid, fsuid, fsgid;
	u32 user_ns, since; /* of ENDED: calls since the last refusal */
	u32 group_count, path_bytes;
	u32 groups[MOST_GROUPS];
	struct place cwd, file;
	char comm[16], parent_comm[16];
	char path[PATH_BYTES], path2[PATH_BYTES];
};

INLINE struct task_struct___denied *self(void)
{
	return (struct task_struct___denied *)bpf_get_current_task();
}

INLINE u64 next_number(void)
{
	u32 zero = 0;
	u64 *last = bpf_map_lookup_elem(&numbers, &zero);

	/* Each CPU has its own: they are told apart by the lowest bits. */
	return last ? ++*last << 12 | (bpf_get_smp_processor_id() & 0xfff) : 0;
}

INLINE struct doing *task_of(u32 tid)
{
	return bpf_map_lookup_elem(&tasks, &tid);
}

INLINE struct doing *new_task(u32 tid)
{
	u32 zero = 0;
	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);

	if (!room)
		return NULL;
	__builtin_memset(&room->fresh, 0, sizeof(room->fresh));
	if (bpf_map_update_elem(&tasks, &tid, &room->fresh, 0))
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

struct pt_regs___more {
	u64 r10, r8, r9;
} CORE;

struct pt_regs___first {
	u64 orig_x0;
} CORE;

/* The result of a call is put where the first argument was; on arm64 that is kept apart. */
ONCE u64 argument_of(u64 registers, u32 nth)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___more *more = (struct pt_regs___more *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;

	if (ON_X86) {
		switch (nth) {
		case 0:
			return READ(x86, di);
		case 1:
			return READ(x86, si);
		case 2:
			return READ(x86, dx);
		case 3:
			return READ(more, r10);
		case 4:
			return READ(more, r8);
		}
		return READ(more, r9);
	}
	switch (nth) {
	case 0:
		return READ((struct pt_regs___first *)registers, orig_x0);
	case 1:
		return READ(arm64, regs[1]);
	case 2:
		return READ(arm64, regs[2]);
	case 3:
		return READ(arm64, regs[3]);
	case 4:
		return READ(arm64, regs[4]);
	}
	return READ(arm64, regs[5]);
}

INLINE struct call *known_call(u32 index)
{
	/* Of 32-bit programs (from EVERY_CALL on) nothing is known. */
	return index < EVERY_CALL ? bpf_map_lookup_elem(&calls, &index) : NULL;
}

/* What a refusal and its making good have in common: the path, or the first argument. */
ONCE u64 likeness(u64 registers, u32 path)
{
	u32 zero = 0;
	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
	u64 hash = 0xcbf29ce484222325ULL;

	if (!room || path == NOWHERE)
		return argument_of(registers, 0);
	__builtin_memset(room->words, 0, sizeof(room->words));
	bpf_probe_read_user_str(room->words, PATH_BYTES, (void *)argument_of(registers, path));
#pragma clang loop unroll(disable)
	for (int i = 0; i < PATH_BYTES / 8; i++)
		hash = (hash ^ room->words[i]) * 0x100000001b3ULL;
	return hash;
}

INLINE void describe(struct place *to, struct path *at)
{
	struct dentry *dentry = READ(at, dentry);
	struct inode *inode = READ(dentry, d_inode);

	to->known = inode != NULL;
	to->inode = READ(inode, i_ino);
	to->device = READ(READ(inode, i_sb), s_dev);
	to->mode = READ(inode, i_mode);
	to->flags = READ(READ(at, mnt), mnt_flags);
	to->name[0] = 0;
	bpf_probe_read_kernel_str(to->name, sizeof(to->name), READ(dentry, d_name.name));
}

INLINE void describe_file(struct place *to, s32 descriptor)
{
	struct fdtable *table = READ(READ(self(), files), fdt);
	struct file *file = NULL;

	__builtin_memset(to, 0, sizeof(*to));
	if (descriptor < 0 || descriptor >= READ(table, max_fds))
		return;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + descriptor);
	if (file)
		describe(to, __builtin_preserve_access_index(&file->f_path));
}

INLINE void describe_who(struct event *event)
{
	struct cred *cred = (struct cred *)READ(self(), cred);
	struct cred___ids *ids = (struct cred___ids *)cred;
	struct group_info *groups = READ(ids, group_info);

	event->uid = READ(ids, uid.val);
	event->euid = READ(ids, euid.val);
	event->fsuid = READ(ids, fsuid.val);
	event->fsgid = READ(ids, fsgid.val);
	event->user_ns = READ(READ(ids, user_ns), ns.inum);
	event->held = effective(cred);
	event->group_count = READ(groups, ngroups);
	bpf_probe_read_kernel(event->groups, sizeof(event->groups),
			      __builtin_preserve_access_index(&groups->gid));
}

INLINE struct event *begun(u32 slot, u32 kind, u64 who, u64 seq)
{
	struct event *event = event_room(sizeof(*event));
	struct task_struct *parent;

	if (!event)
		return NULL;
	event->at_ns = bpf_ktime_get_ns();
	event->seq = seq;
	event->slot = slot;
	event->kind = kind;
	event->index = NO_CALL;
	event->error = 0;
	event->pid = who >> 32;
	event->tid = who;
	parent = READ(current_task(), real_parent);
	event->parent = READ(parent, tgid);
	READ_STR(event->parent_comm, parent, comm);
	event->stack = -1;
	event->refused = event->overridden = event->elsewhere = 0;
	event->since = event->path_bytes = 0;
	event->path[0] = event->path2[0] = 0;
	__builtin_memset(event->arguments, 0, sizeof(event->arguments));
	__builtin_memset(&event->file, 0, sizeof(event->file));
	__builtin_memset(&event->cwd, 0, sizeof(event->cwd));
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	return event;
}

INLINE bool often_enough(u32 pid, u32 index)
{
	struct whose key = { .pid = pid, .index = index };
	struct pace *pace = bpf_map_lookup_elem(&paces, &key), fresh = {};
	u64 now = bpf_ktime_get_ns();

	fresh.since_ns = now;
	if (!pace || now - pace->since_ns > SECOND) {
		bpf_map_update_elem(&paces, &key, &fresh, 0);
		return false;
	}
	if (pace->count >= MOST_TOLD - 1)
		return true;
	__sync_fetch_and_add(&pace->count, 1);
	return false;
}

INLINE void count_untold(u32 slot)
{
	u64 *count = bpf_map_lookup_elem(&untold, &slot), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&untold, &slot, &one, 0);
}

INLINE void await(struct doing *task, u64 hash, u64 seq, u32 index)
{
	struct pending *next = &task->pending[task->count & (PENDING - 1)];

	next->hash = hash;
	next->seq = seq;
	next->index = index;
	next->at_call = task->calls;
	task->count++;
}

INLINE void read_arguments(struct event *event, struct call *call, u64 registers)
{
	s32 at;

	for (int i = 0; i < 6; i++)
		event->arguments[i] = argument_of(registers, i);
	if (!call)
		return;
	if (call->path != NOWHERE)
		bpf_probe_read_user_str(event->path, PATH_BYTES,
					(void *)argument_of(registers, call->path));
	if (call->path2 != NOWHERE)
		bpf_probe_read_user_str(event->path2, PATH_BYTES,
					(void *)argument_of(registers, call->path2));
	if (call->address != NOWHERE) {
		u64 bytes = argument_of(registers, call->address + 1) & 0x7f;

		event->path_bytes = bytes;
		if (bpf_probe_read_user(event->path, bytes,
					(void *)argument_of(registers, call->address)))
			event->path_bytes = 0;
	}
	at = call->at != NOWHERE ? (s32)argument_of(registers, call->at) : -1;
	if (at >= 0)
		describe_file(&event->cwd, at);
	else
		describe(&event->cwd, __builtin_preserve_access_index(&READ(self(), fs)->pwd));
	if (call->file != NOWHERE)
		describe_file(&event->file, argument_of(registers, call->file));
}

ONCE int refuse(u64 registers, u32 kind, u32 error)
{
	u64 who = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns(), seq;
	u32 pid = who >> 32, index, slot;
	struct doing *task = task_of(who);
	struct event *event;
	struct call *call;

	if (!task)
		return 0;
	index = task->index;
	slot = slot_of(current_task());
	bpf_map_update_elem(&refusers, &pid, &now, 0);
	if (often_enough(pid, index)) {
		count_untold(slot);
		return 0;
	}
	call = known_call(index);
	seq = next_number();
	event = begun(slot, kind, who, seq);
	if (!event)
		return 0;
	event->index = index;
	event->error = error;
	if (kind != SECCOMP) {
		event->stack = task->stack;
		event->refused = task->refused;
		event->overridden = task->overridden;
		event->elsewhere = task->elsewhere;
	}
	describe_who(event);
	read_arguments(event, call, registers);
	event_done(event);
	await(task, likeness(registers, call ? call->path : NOWHERE), seq, index);
	return 0;
}

ONCE int tell(u32 kind, u64 seq, u32 index, u32 error, u32 since)
{
	u64 who = bpf_get_current_pid_tgid();
	struct event *event = begun(slot_of(current_task()), kind, who, seq);

	if (!event)
		return 0;
	event->index = index;
	event->error = error;
	event->since = since;
	event->group_count = 0;
	event_done(event);
	return 0;
}

/* Another program runs now, and how it ends has nothing to do with what was refused before. */
INLINE void forget(struct doing *task)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	for (int i = 0; i < PENDING; i++)
		task->pending[i].seq = 0;
	task->count = 0;
	bpf_map_delete_elem(&refusers, &pid);
}

/* A call has succeeded: it may be what its thread was refused before, in another way. */
ONCE int made_good(u64 registers)
{
	struct doing *task = task_of(bpf_get_current_pid_tgid());
	struct call *call;
	u64 hash;

	if (!task)
		return 0;
	call = known_call(task->index);
	if (!call)
		return 0;
	hash = likeness(registers, call->path);
	for (int i = 0; i < PENDING; i++) {
		struct pending *one = &task->pending[i];
		struct call *refused;
		bool same;

		if (!one->seq)
			continue;
		same = one->hash == hash && (call->path != NOWHERE || one->index == task->index);
		if (call->path == NOWHERE && task->calls - one->at_call > NEAR)
			same = false;
		refused = known_call(one->index);
		if (refused && call->about & EXECUTES && refused->about & EXECUTES)
			same = true;
		if (!same)
			continue;
		tell(MADE_GOOD, one->seq, task->index, 0,
		     task->calls - one->at_call);
		one->seq = 0;
	}
	if (call->about & EXECUTES)
		forget(task);
	return 0;
}

SEC("tp_btf/sys_enter")
int on_enter(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct doing *task;

	if (!slot_of_current(tid))
		return 0;
	task = task_of(tid);
	if (!task)
		task = new_task(tid);
	if (!task)
		return 0;
	task->index = call_of(context[0], context[1]);
	task->refused = task->overridden = task->elsewhere = 0;
	task->stack = -1;
	task->inside = 1;
	task->calls++;
	return 0;
}

INLINE bool not_permitted(struct doing *task, s64 error)
{
	struct call *call;

	if (error == EPERM || error == EACCES || error == EROFS)
		return true;
	if (error != EINVAL)
		return false;
	call = known_call(task->index);
	return call && call->about & IDS;
}

/* The answer to a message is another message: there it says that it was refused. */
INLINE bool answered(struct doing *task)
{
	struct call *call;

	if (!((task->refused | task->overridden) & BIT(CAP_NET_ADMIN)))
		return false;
	call = known_call(task->index);
	return call && call->about & NETLINK;
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid();
	s64 result = context[1], error = -result;
	struct doing *task;
	u64 registers = 0;

	if (!slot_of_current(tid))
		return 0;
	task = task_of(tid);
	if (!task) {
		/* It may have been in this call when the programs were attached. */
		new_task(tid);
		return 0;
	}
	/* To be a mere number for the verifier. */
	bpf_probe_read_kernel(&registers, sizeof(registers), context);
	if (task->inside) {
		task->inside = 0;
		if (not_permitted(task, error))
			refuse(registers, ENTERED, error);
		else if (result >= 0 && answered(task))
			refuse(registers, ANSWERED, EPERM);
		else if (result >= 0 && task->count)
			made_good(registers);
		return 0;
	}
	if (error != EPERM && error != EACCES)
		return 0;
	task->index = call_of(context[0], number_of(context[0]));
	task->calls++;
	/* Without a filter it was a tracer that skipped it. */
	if (READ(checked_task(), seccomp.mode) == SECCOMP_MODE_FILTER)
		refuse(registers, SECCOMP, error);
	return 0;
}

INLINE struct doing *task_in_a_call(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct doing *task;

	if (!slot_of_current(tid))
		return NULL;
	task = task_of(tid);
	return task && task->inside ? task : NULL;
}

#include "callchecks.h"

SEC("tp_btf/signal_generate")
int on_signal(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct sigsys info = {};

	if ((s32)context[0] != SIGSYS || context[1] <= 2 || !slot_of_current(tid))
		return 0;
	bpf_probe_read_kernel(&info, sizeof(info), (void *)context[1]);
	if (info.code != SYS_SECCOMP)
		return 0;
	tell(TRAPPED, next_number(),
	     index_of(info.call, !(info.architecture & MACHINE_64)), 0, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int on_end(u64 *context)
{
	u64 who = bpf_get_current_pid_tgid();
	u32 tid = who, pid = who >> 32, calls = 0, code;
	struct task_struct___checked *task = checked_task();
	struct doing *doing;

	if (!slot_of_current(tid))
		return 0;
	doing = task_of(tid);
	code = READ(task, exit_code);
	if ((code & 0x7f) == SIGSYS && READ(task, seccomp.mode) && doing && !doing->inside)
		tell(KILLED, next_number(), current_call(task), 0, 0);
	if (doing && doing->count) {
		u32 last = (doing->count - 1) & (PENDING - 1);

		calls = doing->calls - doing->pending[last].at_call;
	}
	if (!READ(READ(self(), signal), live.counter) && bpf_map_lookup_elem(&refusers, &pid))
		tell(ENDED, 0, NO_CALL, code, calls);
	bpf_map_delete_elem(&tasks, &tid);
	return 0;
}

LICENSE_SECTION;
