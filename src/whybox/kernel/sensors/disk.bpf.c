/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A container's block IO: how long it was held back by a limit, waited in queues, and was in the
 * device; and how much others had the same devices do.
 *
 * A bio is born when somebody submits it, may be held back by blk-throttle, is queued
 * (block_bio_queue, which comes after the throttle: block/blk-core.c, submit_bio_noacct_nocheck()),
 * becomes part of a request, which is issued to the device and completed by it. When it was born is
 * seen where the kernel has kprobes, and of partitions and mapped devices, which are remapped
 * first. Elsewhere the throttle's timer tells: it is started by who finds the queue empty.
 */
#include "events.h"
#include "scope.h"

#define LATENCIES 32
#define SIZES 24
#define MOST_WATCHED 256
#define MOST_ABOVE 10

/* include/linux/blk_types.h: the numbers of operations, the same since v4.10. */
#define OP_MASK 0xff

enum phase { BORN = 1, QUEUED };
enum kind { READ_KIND, WRITE_KIND, FLUSH_KIND, DISCARD_KIND, OTHER_KIND };

struct gendisk {
	int major, first_minor;
	struct request_queue *queue;
} CORE;

struct request_queue {
	struct gendisk *disk; /* on newer kernels */
} CORE;

struct blkcg {
	struct cgroup_subsys_state css;
} CORE;

struct timer_list {
	void *function;
} CORE;

struct throtl_service_queue {
	unsigned int nr_queued[2];
	struct timer_list pending_timer;
} CORE;

/* On newer kernels they are two queues (measured on 6.18). */
struct throtl_service_queue___split {
	unsigned int nr_queued_bps[2], nr_queued_iops[2];
} CORE;

/* Of a group its policies' data, of which the throttle's is one: it begins with it. */
struct throtl_grp {
	struct throtl_service_queue service_queue;
} CORE;

#define MOST_POLICIES 6 /* include/linux/blkdev.h, BLKCG_MAX_POLS */
struct blkcg_gq {
	struct blkcg *blkcg;
	void *pd[MOST_POLICIES];
} CORE;

struct bio {
	u32 bi_opf;
	struct {
		u32 bi_size;
	} bi_iter;
	void *bi_private;
	struct blkcg_gq *bi_blkg;
} CORE;

struct bio___before {
	struct gendisk *bi_disk; /* on older kernels, as 5.10 */
} CORE;

struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
} CORE;

struct request___before {
	struct gendisk *rq_disk; /* on older kernels, as 5.10 */
} CORE;

struct worker {
	void *current_func;
} CORE;

struct kthread {
	void *data;
} CORE;

struct task_struct___kthread {
	void *worker_private; /* on newer kernels, of a kthread its struct kthread; else … */
	void *set_child_tid;
} CORE;

/* The registers of a probed function's first argument. */
struct pt_regs___x86 {
	u64 di;
} CORE;

struct pt_regs___arm64 {
	u64 regs[31];
} CORE;

/* The addresses of two functions of the throttle, or 0: user space puts them in. */
#define TIMER_FUNCTION 0 /* throtl_pending_timer_fn */
#define WORK_FUNCTION 1 /* blk_throtl_dispatch_work_fn */
struct {
	ARRAY_OF(u64, 2);
} functions SEC(".maps");

INLINE bool is_function(void *function, u32 which)
{
	u64 *address = bpf_map_lookup_elem(&functions, &which);

	return address && *address && *address == (u64)function;
}

/* What is known of a bio of the container. */
struct birth {
	u64 born_ns, queued_ns;
	u64 behind_ns; /* how long others were held meanwhile, which are held still */
	u32 slot, pid, phase, flush;
	char comm[16];
};

/* … and of a request that the device works on. */
struct flight {
	struct birth birth;
	u64 issued_ns, sector;
	u32 bytes, unused;
};

struct {
	LRU_HASH_OF(u64, struct birth, 16384);
} births SEC(".maps");

struct {
	LRU_HASH_OF(u64, struct flight, 8192);
} flights SEC(".maps");

struct device {
	u32 slot; /* 0: all others */
	u32 major, minor, kind;
};

struct totals {
	u64 count, bytes, throttled_ns, queued_ns, device_ns, longest_ns, throttled, errors;
	u32 device[LATENCIES]; /* of 2^n to 2^(n+1) us, issued to completed */
	u32 wait[LATENCIES]; /* born to issued */
	u32 size[SIZES]; /* of 2^n to 2^(n+1) times 512 bytes */
};

struct {
	HASH_OF(struct device, struct totals, 1024);
} totals SEC(".maps");

/* Zeros: it is never written. */
struct {
	PERCPU_ARRAY_OF(struct totals, 1);
} nothing SEC(".maps");

/* The slot of a group by its id in whichever tree block IO is controlled. */
struct {
	HASH_OF(u64, u32, 4096);
} groups SEC(".maps");

/* From which length on a single IO is told. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

/* What the throttle's timer tells of a container. */
struct held {
	u64 stamp_ns; /* the queue was empty and is no more */
	u64 batch_ns; /* when bios were last let go */
	u64 from_ns; /* since when those were held */
};

struct {
	ARRAY_OF(struct held, MOST_WATCHED);
} held SEC(".maps");

/* Whether the throttle's timer runs on this CPU. */
struct {
	PERCPU_ARRAY_OF(u64, 1);
} in_timer SEC(".maps");

struct slow {
	u64 at_ns, throttled_ns, queued_ns, device_ns, sector;
	u32 slot, major, minor, kind, bytes, pid;
	s32 error;
	u32 unused;
	char comm[16];
};

INLINE u32 kind_of(u32 flags)
{
	switch (flags & OP_MASK) {
	case 0:
		return READ_KIND;
	case 1:
		return WRITE_KIND;
	case 2:
		return FLUSH_KIND;
	case 3:
	case 5:
		return DISCARD_KIND;
	}
	return OTHER_KIND;
}

/* Who submits for others is a thread of the kernel; then it counts whose the data is. */
static __attribute__((noinline)) u32 slot_of_bio(struct bio *bio)
{
	u32 slot = slot_of(current_task()), *known;
	struct cgroup *group;
	struct scope_rules *all = scope_rules();

	if (slot || !all || all->everybody)
		return slot;
	group = READ(READ(READ(bio, bi_blkg), blkcg), css.cgroup);
	for (int i = 0; i < MOST_ABOVE && group; i++) {
		u64 id = READ(READ(group, kn), id);

		known = bpf_map_lookup_elem(&groups, &id);
		if (known)
			return *known;
		group = READ(READ(group, self.parent), cgroup);
	}
	return 0;
}

INLINE bool is_throttle_worker(struct task_struct *task)
{
	struct task_struct___kthread *thread = (struct task_struct___kthread *)task;
	struct kthread *kthread;
	struct worker *worker;

	if (!(READ(task, flags) & PF_KTHREAD))
		return false;
	if (FIELD_EXISTS(thread->worker_private))
		kthread = READ(thread, worker_private);
	else
		kthread = READ(thread, set_child_tid);
	worker = READ(kthread, data);
	return is_function(READ(worker, current_func), WORK_FUNCTION);
}

INLINE void describe(struct birth *birth, struct task_struct *task)
{
	birth->pid = READ(task, tgid);
	READ_STR(birth->comm, task, comm);
}

INLINE void born(struct bio *bio)
{
	struct task_struct *task = current_task();
	struct birth birth = { .phase = BORN };
	u64 key = (u64)bio;

	/* The throttle's worker submits it again: that is no birth. */
	if (is_throttle_worker(task))
		return;
	birth.slot = slot_of_bio(bio);
	if (!birth.slot)
		return;
	birth.born_ns = bpf_ktime_get_ns();
	describe(&birth, task);
	bpf_map_update_elem(&births, &key, &birth, 0);
}

INLINE u32 queued_in(struct throtl_service_queue *queue, u32 writes)
{
	struct throtl_service_queue___split *split = (void *)queue;

	if (!FIELD_EXISTS(split->nr_queued_bps))
		return writes ? READ(queue, nr_queued[1]) : READ(queue, nr_queued[0]);
	return writes ? READ(split, nr_queued_bps[1]) + READ(split, nr_queued_iops[1]) :
			READ(split, nr_queued_bps[0]) + READ(split, nr_queued_iops[0]);
}

/* How many bios the throttle still holds of the group of one. Which of the policies is the throttle
 * is told by its timer's function. */
INLINE u32 held_behind(struct bio *bio)
{
	struct blkcg_gq *group = READ(bio, bi_blkg);
	u32 writes = (READ(bio, bi_opf) & OP_MASK) == 1, count = 0;

	for (int i = 0; i < MOST_POLICIES; i++) {
		struct throtl_grp *policy = NULL;
		struct throtl_service_queue *queue;

		bpf_probe_read_kernel(&policy, sizeof(policy),
				      (void *)__builtin_preserve_access_index(&group->pd) + 8 * i);
		queue = (void *)__builtin_preserve_access_index(&policy->service_queue);
		if (policy && is_function(READ(queue, pending_timer.function), TIMER_FUNCTION)) {
			count = queued_in(queue, writes);
			break;
		}
	}
	return count < 65536 ? count : 0;
}

/*
 * Since when the throttle held what it lets go now, as far as its timer told. It lets go of a batch
 * at a time. What it holds longer has waited as long: so is the sum right although it is not seen
 * when each came.
 */
INLINE void hold(struct birth *birth, struct bio *bio, u64 now)
{
	u32 at = birth->slot & (MOST_WATCHED - 1);
	struct held *one = bpf_map_lookup_elem(&held, &at);
	u64 from;

	if (!one)
		return;
	from = one->stamp_ns > one->batch_ns ? one->stamp_ns : one->batch_ns;
	if (from == one->batch_ns && now - from <= 3000000) {
		birth->born_ns = one->from_ns ? one->from_ns : now;
		return;
	}
	one->from_ns = from;
	one->batch_ns = now;
	if (from) {
		birth->born_ns = from;
		birth->behind_ns = held_behind(bio) * (now - from);
	}
}

/*
 * The second argument, if there is one; else what lies beyond. A program that looks at more than a
 * tracepoint has is not attached (kernel/trace/bpf_trace.c, __bpf_probe_register()), but one may
 * look at any memory of the kernel.
 */
INLINE u64 second_of(u64 *context)
{
	u64 second = 0;

	bpf_probe_read_kernel(&second, sizeof(second), context + 1);
	return second;
}

/* On 5.10 the queue comes first. */
INLINE struct bio *bio_of(u64 *context)
{
	struct bio___before *second = (struct bio___before *)second_of(context);

	if (FIELD_EXISTS(second->bi_disk) &&
	    (u64)READ(READ(second, bi_disk), queue) == context[0])
		return (struct bio *)second;
	return (struct bio *)context[0];
}

/* Of requests likewise. */
INLINE struct request *request_of(u64 *context)
{
	struct request *second = (struct request *)second_of(context);

	if ((u64)READ(second, q) == context[0])
		return second;
	return (struct request *)context[0];
}

SEC("raw_tp/block_bio_remap")
int on_remap(u64 *context)
{
	born(bio_of(context));
	return 0;
}

INLINE void throttled(u64 *registers)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;

	if (FIELD_EXISTS(x86->di))
		born((struct bio *)READ(x86, di));
	else
		born((struct bio *)READ(arm64, regs[0]));
}

SEC("kprobe/__blk_throtl_bio")
int on_throttle(u64 *registers)
{
	throttled(registers);
	return 0;
}

SEC("kprobe/blk_throtl_bio")
int on_throttle_before(u64 *registers)
{
	throttled(registers);
	return 0;
}

SEC("tp_btf/timer_start")
int on_timer(u64 *context)
{
	struct timer_list *timer = (struct timer_list *)context[0];
	u32 zero = 0, slot;
	u64 *running;
	struct held *one;

	if (!is_function(timer->function, TIMER_FUNCTION))
		return 0;
	running = bpf_map_lookup_elem(&in_timer, &zero);
	if (!running || *running)
		return 0;
	slot = slot_of(current_task()) & (MOST_WATCHED - 1);
	one = bpf_map_lookup_elem(&held, &slot);
	if (slot && one)
		one->stamp_ns = bpf_ktime_get_ns();
	return 0;
}

INLINE void note_timer(u64 *context, u64 runs)
{
	struct timer_list *timer = (struct timer_list *)context[0];
	u32 zero = 0;
	u64 *running;

	if (!is_function(timer->function, TIMER_FUNCTION))
		return;
	running = bpf_map_lookup_elem(&in_timer, &zero);
	if (running)
		*running = runs;
}

SEC("tp_btf/timer_expire_entry")
int on_expire(u64 *context)
{
	note_timer(context, 1);
	return 0;
}

/* Another timer's function may run on the CPU only after this one's. */
SEC("tp_btf/timer_expire_exit")
int after_expire(u64 *context)
{
	u32 zero = 0;
	u64 *running = bpf_map_lookup_elem(&in_timer, &zero);

	if (running && *running)
		*running = 0;
	return 0;
}

/* REQ_PREFLUSH without data is a flush: include/linux/blk_types.h. */
INLINE bool is_flush(struct bio *bio, u32 flags)
{
	return (flags & OP_MASK) == 2 || ((flags & OP_MASK) == 1 && !READ(bio, bi_iter.bi_size));
}

SEC("raw_tp/block_bio_queue")
int on_queue(u64 *context)
{
	struct bio *bio = bio_of(context);
	struct task_struct *task = current_task();
	struct birth *known, fresh = { .phase = QUEUED };
	u64 key = (u64)bio, now = bpf_ktime_get_ns();

	known = bpf_map_lookup_elem(&births, &key);
	if (known && known->phase == BORN) {
		known->flush = is_flush(bio, READ(bio, bi_opf));
		known->queued_ns = now;
		known->phase = QUEUED;
		return 0;
	}
	fresh.slot = slot_of_bio(bio);
	if (!fresh.slot) {
		if (known)
			bpf_map_delete_elem(&births, &key);
		return 0;
	}
	fresh.flush = is_flush(bio, READ(bio, bi_opf));
	fresh.born_ns = fresh.queued_ns = now;
	if (is_throttle_worker(task))
		hold(&fresh, bio, now);
	describe(&fresh, task);
	bpf_map_update_elem(&births, &key, &fresh, 0);
	return 0;
}

/* What is known of a request's first bio, or of the one that it was split from. */
INLINE struct birth *birth_of(struct bio *bio)
{
	u64 key = (u64)bio;
	struct birth *found;

	if (!bio)
		return NULL;
	found = bpf_map_lookup_elem(&births, &key);
	if (found)
		return found;
	key = (u64)READ(bio, bi_private);
	return bpf_map_lookup_elem(&births, &key);
}

SEC("raw_tp/block_rq_issue")
int on_issue(u64 *context)
{
	struct request *request = request_of(context);
	struct birth *birth = birth_of(READ(request, bio));
	u64 key = (u64)request;
	struct flight flight = {};

	if (!birth) {
		if (bpf_map_lookup_elem(&flights, &key))
			bpf_map_delete_elem(&flights, &key);
		return 0;
	}
	flight.birth = *birth;
	flight.issued_ns = bpf_ktime_get_ns();
	flight.sector = READ(request, __sector);
	flight.bytes = READ(request, __data_len);
	bpf_map_update_elem(&flights, &key, &flight, 0);
	return 0;
}

INLINE struct totals *totals_of(struct device *key)
{
	struct totals *found = bpf_map_lookup_elem(&totals, key), *zeros;
	u32 zero = 0;

	if (found)
		return found;
	zeros = bpf_map_lookup_elem(&nothing, &zero);
	if (!zeros)
		return NULL;
	bpf_map_update_elem(&totals, key, zeros, 1 /* BPF_NOEXIST */);
	found = bpf_map_lookup_elem(&totals, key);
	if (!found)
		count_lost();
	return found;
}

INLINE void name_device(struct request *request, struct device *key)
{
	struct request___before *before = (struct request___before *)request;
	struct gendisk *disk;

	if (FIELD_EXISTS(before->rq_disk))
		disk = READ(before, rq_disk);
	else
		disk = READ(READ(request, q), disk);
	key->major = READ(disk, major);
	key->minor = READ(disk, first_minor);
}

/* Not static: such a function the verifier looks at once, and then only knows that it gives a
 * number. It would else try what each of these comparisons leads to with each of the others. */
__attribute__((noinline)) u32 power_of(u64 value)
{
	return log2(value);
}

INLINE u32 bucket_of(u64 ns)
{
	u32 bucket = power_of(ns / 1000);

	return bucket < LATENCIES ? bucket : LATENCIES - 1;
}

INLINE void add(struct totals *sum, struct flight *flight, u64 now)
{
	struct birth *birth = &flight->birth;
	u64 device = now - flight->issued_ns, all = now - birth->born_ns;
	u64 held = birth->queued_ns - birth->born_ns;
	u32 size = power_of(flight->bytes / 512);

	__sync_fetch_and_add(&sum->count, 1);
	__sync_fetch_and_add(&sum->bytes, flight->bytes);
	__sync_fetch_and_add(&sum->device_ns, device);
	__sync_fetch_and_add(&sum->queued_ns, flight->issued_ns - birth->queued_ns);
	__sync_fetch_and_add(&sum->throttled_ns, held + birth->behind_ns);
	if (held > 1000000) /* one that passes the throttle does so in microseconds */
		__sync_fetch_and_add(&sum->throttled, 1);
	__sync_fetch_and_add(&sum->device[bucket_of(device) & (LATENCIES - 1)], 1);
	__sync_fetch_and_add(
		&sum->wait[bucket_of(flight->issued_ns - birth->born_ns) & (LATENCIES - 1)], 1);
	if (size >= SIZES)
		size = SIZES - 1;
	__sync_fetch_and_add(&sum->size[size], 1);
	if (all > sum->longest_ns)
		sum->longest_ns = all;
}

INLINE void tell(struct device *device, struct flight *flight, s32 error, u64 now)
{
	struct birth *birth = &flight->birth;
	struct slow *event;
	u32 zero = 0;
	u64 *least = bpf_map_lookup_elem(&slower, &zero);

	if (!least || now - birth->born_ns < *least)
		return;
	event = event_room(sizeof(*event));
	if (!event)
		return;
	event->at_ns = now;
	event->throttled_ns = birth->queued_ns - birth->born_ns;
	event->queued_ns = flight->issued_ns - birth->queued_ns;
	event->device_ns = now - flight->issued_ns;
	event->sector = flight->sector;
	event->slot = device->slot;
	event->major = device->major;
	event->minor = device->minor;
	event->kind = device->kind;
	event->bytes = flight->bytes;
	event->pid = birth->pid;
	event->error = error;
	event->unused = 0;
	__builtin_memcpy(event->comm, birth->comm, sizeof(event->comm));
	event_done(event);
}

INLINE void count_others(struct device *device, u32 bytes)
{
	struct totals *sum;

	device->slot = 0;
	sum = totals_of(device);
	if (sum) {
		__sync_fetch_and_add(&sum->count, 1);
		__sync_fetch_and_add(&sum->bytes, bytes);
	}
}

/* A flush without data is never issued itself (block/blk-flush.c): it is a request of the flush
 * machinery's own that is, for several who wait. */
INLINE bool make_flush(struct request *request, struct flight *flight)
{
	struct birth *birth = birth_of(READ(request, bio));

	if (!birth || !birth->flush || birth->phase != QUEUED)
		return false;
	flight->birth = *birth;
	flight->issued_ns = birth->queued_ns;
	birth->phase = 0; /* counted */
	return true;
}

SEC("raw_tp/block_rq_complete")
int on_complete(u64 *context)
{
	struct request *request = (struct request *)context[0];
	u64 key = context[0], now = bpf_ktime_get_ns();
	u32 bytes = context[2];
	struct device device = {};
	struct flight *known, flight = {};
	struct totals *sum;

	if (bytes < READ(request, __data_len))
		return 0; /* a part of it */
	device.kind = kind_of(READ(request, cmd_flags));
	name_device(request, &device);
	known = bpf_map_lookup_elem(&flights, &key);
	if (known) {
		flight = *known;
		bpf_map_delete_elem(&flights, &key);
	} else if (make_flush(request, &flight)) {
		device.kind = FLUSH_KIND;
	} else {
		if (device.kind != FLUSH_KIND)
			count_others(&device, bytes);
		return 0;
	}
	device.slot = flight.birth.slot;
	sum = totals_of(&device);
	if (!sum)
		return 0;
	add(sum, &flight, now);
	if ((u32)context[1])
		__sync_fetch_and_add(&sum->errors, 1);
	tell(&device, &flight, context[1], now);
	return 0;
}

LICENSE_SECTION;
