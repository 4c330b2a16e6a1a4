//! Books kept right, and marked where they may not be.

use super::*;

fn range(start: u64, bytes: u64) -> DeviceRange {
    DeviceRange { start: DevicePtr(start), bytes: Bytes(bytes) }
}

fn allocated(start: u64, call: Call) -> What {
    What::Allocated(call, range(start, 10))
}

fn made(context: Context) -> What {
    What::ContextMade(context)
}

fn ended(context: Context) -> What {
    What::ContextEnded(context)
}

fn seen(whole: bool, lost: [u64; Loss::COUNT]) -> What {
    What::Activity(Activity {
        who: std::sync::Arc::default(),
        counts: Box::default(),
        first_call: Moment::default(),
        last_call: Moment::default(),
        last_launch: Moment::default(),
        lost,
        whole,
    })
}

fn booked(all: &[What]) -> Observed {
    let mut observed = Observed::default();
    observed.book(&seen(true, [0; Loss::COUNT]), usize::MAX);
    for what in all {
        observed.book(what, usize::MAX);
    }
    observed
}

#[test]
fn memory_is_counted_until_it_is_freed() {
    let freed = |address| What::Freed(DevicePtr(address));
    let mut observed = booked(&[allocated(100, Call::Alloc), allocated(200, Call::AllocManaged)]);
    assert_eq!((observed.allocated, observed.managed), (Bytes(10), Bytes(10)));
    // The same address again: the free in between was lost.
    observed.book(&allocated(100, Call::Alloc), usize::MAX);
    assert_eq!(observed.allocated, Bytes(10));
    observed.book(&freed(200), usize::MAX);
    observed.book(&freed(300), usize::MAX);
    assert_eq!((observed.allocated, observed.managed), (Bytes(10), Bytes::ZERO));
    assert!(!observed.inexact());
}

#[test]
fn what_is_freed_in_a_streams_order_may_stay_in_the_pool() {
    let freed = What::Freed(DevicePtr(100));
    let mut observed = booked(&[allocated(100, Call::AllocAsync), freed]);
    assert_eq!((observed.allocated, observed.pooled), (Bytes::ZERO, Bytes(10)));
    observed.book(&allocated(100, Call::AllocAsync), usize::MAX);
    assert_eq!((observed.allocated, observed.pooled), (Bytes(10), Bytes::ZERO));
}

#[test]
fn memory_of_a_primary_context_stays_until_its_last_reference_goes() {
    let primary = Context::Primary(0);
    let mut observed = booked(&[made(primary), made(primary), allocated(100, Call::Alloc)]);
    observed.book(&ended(primary), usize::MAX);
    assert_eq!(observed.allocated, Bytes(10), "one reference is left");
    assert_eq!(observed.by_device, [(Some(0), Bytes(10))].into());
    observed.book(&ended(primary), usize::MAX);
    assert_eq!((observed.allocated, observed.inexact()), (Bytes::ZERO, false));
    // One that was retained before anybody looked.
    let mut late = booked(&[allocated(100, Call::Alloc), ended(primary)]);
    assert_eq!((late.allocated, late.inexact()), (Bytes(10), true));
    late.book(&What::Exec, usize::MAX);
    assert_eq!((late.allocated, late.inexact()), (Bytes::ZERO, false));
}

#[test]
fn the_end_of_a_context_takes_only_its_own_devices_memory() {
    let mut observed = booked(&[made(Context::Primary(0)), allocated(100, Call::Alloc)]);
    let create = What::Created { handle: 7, bytes: Bytes(5), device: 1 };
    observed.book(&made(Context::Primary(1)), usize::MAX);
    observed.book(&create, usize::MAX);
    observed.book(&ended(Context::Primary(1)), usize::MAX);
    assert_eq!(observed.by_device, [(Some(0), Bytes(10)), (Some(1), Bytes(5))].into());
    assert!(!observed.inexact());
    observed.book(&What::ContextReset(0), usize::MAX);
    assert_eq!(observed.by_device, [(Some(1), Bytes(5))].into(), "handles outlive contexts");
    // With contexts of its own it is not known whose memory went.
    let mut own = booked(&[made(Context::Own(1)), made(Context::Own(2)), allocated(100, Call::Alloc)]);
    own.book(&ended(Context::Own(1)), usize::MAX);
    assert_eq!((own.allocated, own.inexact()), (Bytes(10), true));
    own.book(&ended(Context::Own(2)), usize::MAX);
    assert_eq!(own.allocated, Bytes::ZERO);
}

#[test]
fn a_handle_lives_as_long_as_it_is_held_or_mapped() {
    let map = |start| What::Mapped(range(start, 20), 7);
    let released = What::Released(7);
    let create = What::Created { handle: 7, bytes: Bytes(20), device: 0 };
    let mut observed = booked(&[create, map(1000), map(2000), released]);
    assert_eq!(observed.allocated, Bytes(20), "created, mapped twice, released");
    observed.book(&What::Unmapped(range(1000, 20)), usize::MAX);
    assert_eq!(observed.allocated, Bytes(20));
    observed.book(&What::Unmapped(range(1000, 5000)), usize::MAX);
    assert_eq!(observed.allocated, Bytes::ZERO);
}

#[test]
fn who_lost_records_or_was_older_is_inexact() {
    let mut lost = [0; Loss::COUNT];
    let mut observed = booked(&[]);
    lost[Loss::Full as usize] = 1;
    observed.book(&seen(true, lost), usize::MAX);
    assert!(observed.inexact());
    observed.book(&What::Exec, usize::MAX);
    assert!(!observed.inexact());
    observed.book(&seen(false, lost), usize::MAX);
    assert!(observed.inexact());
}

#[test]
fn no_process_makes_the_books_grow_without_bound() {
    let mut observed = booked(&[]);
    for number in 0..2 * REMEMBERED as u64 {
        observed.book(&allocated(number * 4096, Call::Alloc), usize::MAX);
        let handle = number;
        observed.book(&What::Created { handle, bytes: Bytes(1), device: 0 }, usize::MAX);
        observed.book(&What::Mapped(range(number * 4096, 1), handle), usize::MAX);
        observed.book(&made(Context::Own(number)), usize::MAX);
    }
    assert!(observed.inexact());
    let sizes = [observed.live.len(), observed.handles.len(), observed.mapped.len(), observed.contexts.len()];
    assert_eq!(sizes, [REMEMBERED; 4]);
}

#[test]
fn inexact_books_show_no_more_than_nvml_and_exact_ones_what_they_are() {
    let mut observed =
        booked(&[made(Context::Primary(0)), allocated(100, Call::Alloc), allocated(200, Call::Alloc)]);
    let shown = |observed: &Observed, measured: Option<u64>| {
        let books = observed.for_people(measured.map(Bytes));
        (books.allocated.0, books.by_device[&Some(0)].0, books.inexact)
    };
    // What was allocated since the reading is not in it.
    assert_eq!(shown(&observed, Some(15)), (20, 20, false));
    // A free was lost.
    observed.book(&seen(true, [1, 0, 0, 0]), usize::MAX);
    assert_eq!(shown(&observed, Some(15)), (15, 15, true));
    assert_eq!(shown(&observed, Some(500)), (20, 20, true));
    assert_eq!(shown(&observed, None), (20, 20, true), "NVML does not list it");
}
