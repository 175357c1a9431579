/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whom a sensor watches. User space (kernel/bpf/scope.py) puts each container into `scopes` under
 * what the kernel knows it by: the id of a control group, the inode of a pid or network namespace,
 * or a process. `slot_of` and its kin answer with the container's number, from 1 on; 0: nobody's.
 *
 * A task is in a container's group or in one below it. So the groups above the task's own are looked
 * up at the levels at which containers are, which `rules` tell, one for each tree and level.
 */
#ifndef WHYBOX_SCOPE_H
#define WHYBOX_SCOPE_H

#include "core.h"

enum scope_kind { SCOPE_CGROUP = 1, SCOPE_PIDNS = 2, SCOPE_PROCESS = 3, SCOPE_NETNS = 4 };

/* Trees: the unified one, or that of a v1 controller. */
enum scope_tree { TREE_UNIFIED, TREE_PIDS, TREE_MEMORY, TREE_CPU, TREE_FREEZER };

#define MOST_RULES 8

struct scope_key {
	u64 id;
	u32 kind;
	u32 tree;
};

struct scope_rules {
	u32 everybody; /* the whole host, in slot 1 */
	u32 kinds; /* a bit for each kind in use */
	u32 count;
	u32 generation; /* another one each time that somebody is added */
	u32 one_tree; /* all the rules are for the tree of the first */
	struct {
		u32 tree;
		s32 level;
	} rule[MOST_RULES];
};

struct {
	HASH_OF(struct scope_key, u32, 4096);
} scopes SEC(".maps");

struct {
	ARRAY_OF(struct scope_rules, 1);
} rules SEC(".maps");

/*
 * What was found for a task's group, by the group's serial number, which the kernel never gives
 * again. It is one word, serial:40 generation:12 slot:12, so that it is read and written whole:
 * a program may be interrupted by another on the same CPU.
 */
#define MOST_REMEMBERED 64
#define MOST_SLOTS 4096

struct memory {
	u64 runs; /* counted here where every ns counts: it saves a map */
	u64 word[MOST_REMEMBERED];
};

struct {
	PERCPU_ARRAY_OF(struct memory, 1);
} remembered SEC(".maps");

INLINE struct memory *memory_of_groups(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&remembered, &zero);
}

INLINE struct scope_rules *scope_rules(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&rules, &zero);
}

INLINE u32 slot_at(u64 id, u32 kind, u32 tree)
{
	struct scope_key key = { .id = id, .kind = kind, .tree = tree };
	u32 *slot = bpf_map_lookup_elem(&scopes, &key);

	return slot ? *slot : 0;
}

INLINE struct cgroup_subsys_state *css_of(struct css_set *set, u32 number)
{
	struct cgroup_subsys_state *css = NULL;

	bpf_probe_read_kernel(&css, sizeof(css),
			      (void *)__builtin_preserve_access_index(&set->subsys) + 8 * number);
	return css;
}

/* Where a task is in one tree: a `struct cgroup_subsys_state`, which may be NULL. */
CHECKED_ONCE u64 css_in(u64 css_set, u32 tree)
{
	struct css_set *set = (struct css_set *)css_set;

	switch (tree) {
	case TREE_PIDS:
		return (u64)css_of(set, ENUM_VALUE(enum cgroup_subsys_id, pids_cgrp_id));
	case TREE_MEMORY:
		return (u64)css_of(set, ENUM_VALUE(enum cgroup_subsys_id, memory_cgrp_id));
	case TREE_CPU:
		return (u64)css_of(set, ENUM_VALUE(enum cgroup_subsys_id, cpu_cgrp_id));
	case TREE_FREEZER:
		return (u64)css_of(set, ENUM_VALUE(enum cgroup_subsys_id, freezer_cgrp_id));
	}
	/* A group's own css is not one of a controller's. */
	return (u64)__builtin_preserve_access_index(&READ(set, dfl_cgrp)->self);
}

/* The id of the group at one level above a group, which is not above that level. */
INLINE u64 ancestor_id(struct cgroup *group, u32 level)
{
	struct cgroup *ancestor = NULL;
	u64 id = 0;

	if (!FIELD_EXISTS(group->ancestors)) {
		bpf_probe_read_kernel(&id, sizeof(id),
				      (void *)__builtin_preserve_access_index(
					      &((struct cgroup___ids *)group)->ancestor_ids) +
					      8 * level);
		return id;
	}
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
			      (void *)__builtin_preserve_access_index(&group->ancestors) +
				      8 * level);
	return READ(READ(ancestor, kn), id);
}

/* The slot of a task's group in one tree, by the rule for one level; 0: it is nobody's. */
CHECKED_ONCE u32 slot_in(u64 css_set, u32 tree, s32 level)
{
	struct cgroup *group = READ((struct cgroup_subsys_state *)css_in(css_set, tree), cgroup);

	if (!group || READ(group, level) < level)
		return 0;
	return slot_at(ancestor_id(group, level), SCOPE_CGROUP, tree);
}

INLINE u32 pidns_of(struct task_struct *task)
{
	struct pid *pid = READ(task, thread_pid);
	struct pid_namespace *ns = NULL;
	u32 level = READ(pid, level);

	bpf_probe_read_kernel(&ns, sizeof(ns),
			      (void *)__builtin_preserve_access_index(&pid->numbers[0].ns) +
				      __builtin_preserve_type_info(*(struct upid *)0, 1) * level);
	return READ(ns, ns.inum);
}

INLINE u32 slot_by_groups(struct scope_rules *all, struct css_set *set)
{
	u32 slot = 0;

	for (int i = 0; i < MOST_RULES && !slot; i++) {
		if (i >= all->count)
			break;
		slot = slot_in((u64)set, all->rule[i].tree, all->rule[i].level);
	}
	return slot;
}

INLINE u64 memory_key(struct scope_rules *all, u64 serial)
{
	return serial << 24 | (u64)(all->generation & 0xfff) << 12;
}

INLINE u32 slot_by_memory(struct scope_rules *all, struct css_set *set)
{
	struct memory *memory = memory_of_groups();
	u64 serial, key = 0, word;
	volatile u64 *known = NULL;
	u32 slot;

	if (all->one_tree && memory) {
		serial = READ((struct cgroup_subsys_state *)css_in((u64)set, all->rule[0].tree),
			      serial_nr);
		key = memory_key(all, serial);
		known = &memory->word[serial & (MOST_REMEMBERED - 1)];
		word = *known;
		if ((word & ~0xfffULL) == key)
			return word & 0xfff;
	}
	slot = slot_by_groups(all, set);
	if (known)
		*known = key | slot;
	return slot;
}

/* The slot of a task's container by its control group, namespace or process; 0: nobody's. */
INLINE u32 slot_of(struct task_struct *task)
{
	struct scope_rules *all = scope_rules();
	u32 slot = 0;

	if (!all)
		return 0;
	if (all->everybody)
		return 1;
	if (all->kinds & (1 << SCOPE_CGROUP))
		slot = slot_by_memory(all, READ(task, cgroups));
	if (!slot && all->kinds & (1 << SCOPE_PIDNS))
		slot = slot_at(pidns_of(task), SCOPE_PIDNS, 0);
	if (!slot && all->kinds & (1 << SCOPE_PROCESS))
		slot = slot_at(READ(task, tgid), SCOPE_PROCESS, 0);
	return slot;
}

/*
 * The same for a task whose type the verifier knows, as an argument of tp_btf: what it points to is
 * then read in place, which costs less than a call for each field (runqueue, measured on 6.18).
 */
INLINE u64 serial_of_typed(struct css_set *set, u32 number)
{
	struct cgroup_subsys_state *css;

	css = *(struct cgroup_subsys_state **)(
		(void *)__builtin_preserve_access_index(&set->subsys) + 8 * number);
	return css->serial_nr;
}

INLINE u64 serial_in(struct css_set *set, u32 tree)
{
	switch (tree) {
	case TREE_PIDS:
		return serial_of_typed(set, ENUM_VALUE(enum cgroup_subsys_id, pids_cgrp_id));
	case TREE_MEMORY:
		return serial_of_typed(set, ENUM_VALUE(enum cgroup_subsys_id, memory_cgrp_id));
	case TREE_CPU:
		return serial_of_typed(set, ENUM_VALUE(enum cgroup_subsys_id, cpu_cgrp_id));
	case TREE_FREEZER:
		return serial_of_typed(set, ENUM_VALUE(enum cgroup_subsys_id, freezer_cgrp_id));
	}
	return set->dfl_cgrp->self.serial_nr;
}

INLINE u32 slot_of_typed(struct task_struct *task, struct memory *memory)
{
	struct scope_rules *all = scope_rules();
	struct css_set *set = task->cgroups;
	u64 serial, word;

	if (!all || !all->one_tree || all->everybody)
		return slot_of(task);
	serial = serial_in(set, all->rule[0].tree);
	word = *(volatile u64 *)&memory->word[serial & (MOST_REMEMBERED - 1)];
	/* Who is in nobody's group may be in somebody's namespace. */
	if ((word & ~0xfffULL) != memory_key(all, serial) ||
	    (!(word & 0xfff) && all->kinds & (1 << SCOPE_PIDNS | 1 << SCOPE_PROCESS)))
		return slot_of(task);
	return word & 0xfff;
}

INLINE u32 slot_of_net(u32 inode)
{
	return slot_at(inode, SCOPE_NETNS, 0);
}

#endif
