/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's structures, by hand: only the fields that several programs read. Where a field is
 * in the running kernel's structure is put in when the object is loaded, so neither the order nor
 * what is left out matters. What one program alone reads is declared there.
 */
#ifndef WHYBOX_CORE_H
#define WHYBOX_CORE_H

#include "helpers.h"

struct list_head {
	struct list_head *next;
} CORE;

struct ns_common {
	u32 inum;
} CORE;

struct kernfs_node {
	u64 id; /* of a control group: its inode number, and bpf_get_current_cgroup_id() */
} CORE;

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
	u64 serial_nr; /* never given twice */
} CORE;

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	/* By level, itself the last. Since commit 7f203bc89eb6 ("cgroup: Replace
	 * cgroup->ancestor_ids[] with ->ancestors[]") (v6.1). */
	struct cgroup *ancestors[1];
} CORE;

struct cgroup___ids {
	u64 ancestor_ids[1]; /* before that commit */
} CORE;

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
} CORE;

/* Numbered by what the kernel was built with. */
enum cgroup_subsys_id {
	cpu_cgrp_id,
	cpuacct_cgrp_id,
	memory_cgrp_id,
	freezer_cgrp_id,
	pids_cgrp_id,
};

struct pid_namespace {
	struct ns_common ns;
	u32 level;
} CORE;

struct upid {
	int nr;
	struct pid_namespace *ns;
} CORE;

struct pid {
	u32 level;
	struct upid numbers[1];
} CORE;

struct net {
	struct ns_common ns;
} CORE;

struct nsproxy {
	struct net *net_ns;
} CORE;

struct sched_info {
	u64 last_queued;
} CORE;

struct task_io_accounting {
	u64 read_bytes, write_bytes;
} CORE;

struct task_struct {
	int pid, tgid;
	char comm[16];
	u32 flags;
	struct task_struct *real_parent, *group_leader;
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	struct sched_info sched_info;
	struct task_io_accounting ioac;
	u64 start_boottime;
	unsigned int __state; /* Since commit 2f064a59a11f ("sched: Change task_struct::state") (v5.14) */
} CORE;

struct task_struct___state {
	long state; /* before that commit */
} CORE;

#define TASK_UNINTERRUPTIBLE 2
#define PF_KTHREAD 0x00200000

/* The current task. The typed helper is newer than the kernels whybox runs on (5.11). */
INLINE struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

INLINE u64 state_of(struct task_struct *task)
{
	if (FIELD_EXISTS(task->__state))
		return READ(task, __state);
	return READ((struct task_struct___state *)task, state);
}

INLINE u32 net_of(struct task_struct *task)
{
	return READ(READ(READ(task, nsproxy), net_ns), ns.inum);
}

#endif
