//! What a record of the ring buffer tells.

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Context, What};
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::{Kind, Record};
use nvshare_common::probe::{Call, Manner};

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: u64 = 1;

/// What a record of a call or launch tells of its process; `None` for what nobody asks for: calls that failed, those whose
/// result is needed and not known, and what the shim's own threads do with physical handles (it is their mappings that
/// count).
pub(super) fn what(record: &Record) -> Option<What> {
    let range = DeviceRange { start: DevicePtr(record.address), bytes: Bytes(record.bytes) };
    if record.kind()? == Kind::Launch {
        return Some(What::Launched { at: Moment(record.time), parameters: record.parameters.to_vec() });
    }
    if record.returned() && record.result != 0 {
        return None;
    }
    let (known, application) = (record.returned(), !record.engine());
    // Where returns are not observed, what takes memory away is taken for done: the process is marked as inexact then.
    match record.call()? {
        call @ (Call::Alloc | Call::AllocAsync | Call::AllocManaged) => {
            (known && application).then_some(What::Allocated(call, range))
        }
        Call::Free | Call::FreeAsync => application.then_some(What::Freed(range.start)),
        Call::Create => {
            let (kind, device) = (record.detail & 0xffff_ffff, (record.detail >> 32) as u32);
            let (handle, bytes) = (record.address, range.bytes);
            let created = What::Created { handle, bytes, device };
            (known && application && kind == ON_DEVICE).then_some(created)
        }
        // What is imported is another process's memory.
        Call::Handle if record.manner() == Some(Manner::Import) => None,
        Call::Handle => (known && application).then_some(What::Retained(record.address)),
        Call::Release => application.then_some(What::Released(record.address)),
        Call::Map => Some(What::Mapped(range, record.further)),
        Call::Unmap => Some(What::Unmapped(range)),
        Call::Prefetch => Some(What::Prefetched(range)),
        Call::Advise => Some(What::Advised(range, record.detail & 0xffff_ffff)),
        Call::ContextCreate => {
            let context = match record.manner()? {
                Manner::PrimaryRetain => Context::Primary(record.bytes as u32),
                _ => Context::Own(record.address),
            };
            known.then_some(What::ContextMade(context))
        }
        Call::ContextDestroy => Some(match record.manner()? {
            Manner::PrimaryReset => What::ContextReset(record.address as u32),
            Manner::PrimaryRelease => What::ContextEnded(Context::Primary(record.address as u32)),
            _ => What::ContextEnded(Context::Own(record.address)),
        }),
        Call::Launch
        | Call::GraphLaunch
        | Call::Synchronize
        | Call::Share
        | Call::HostAlloc
        | Call::Array
        | Call::Pool
        | Call::Module
        | Call::HostFunction
        | Call::Batch => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, call: Call, flags: u64) -> Record {
        Record {
            head: Record::head(kind, call as usize, flags),
            address: 0x1000,
            bytes: 64,
            ..Record::default()
        }
    }

    #[test]
    fn only_an_allocation_that_is_known_to_have_succeeded_is_told() {
        let seen = record(Kind::Call, Call::Alloc, Record::RETURNED);
        let range = DeviceRange { start: DevicePtr(0x1000), bytes: Bytes(64) };
        let expected = What::Allocated(Call::Alloc, range);
        assert_eq!(what(&seen), Some(expected));
        assert_eq!(what(&Record { result: 2, ..seen }), None);
        assert_eq!(what(&record(Kind::Call, Call::Alloc, 0)), None);
    }

    #[test]
    fn the_engines_mappings_are_told_like_the_applications() {
        let range = DeviceRange { start: DevicePtr(0x1000), bytes: Bytes(64) };
        for flags in [0, Record::ENGINE] {
            let seen = what(&record(Kind::Call, Call::Map, flags));
            assert_eq!(seen, Some(What::Mapped(range, 0)));
        }
    }

    #[test]
    fn a_call_that_failed_changed_nothing() {
        for call in [Call::Free, Call::FreeAsync, Call::Release, Call::Unmap, Call::ContextDestroy] {
            let failed = Record { result: 1, ..record(Kind::Call, call, Record::RETURNED) };
            assert_eq!(what(&failed), None, "{}", call.name());
            assert!(what(&record(Kind::Call, call, Record::RETURNED)).is_some());
        }
    }

    #[test]
    fn a_primary_context_is_told_by_its_device_and_others_by_their_handle() {
        let of = |call, manner: Manner| {
            let flags = Record::RETURNED | (manner as u64) << 24;
            let seen = Record { bytes: 3, ..record(Kind::Call, call, flags) };
            what(&seen).unwrap()
        };
        let retained = of(Call::ContextCreate, Manner::PrimaryRetain);
        assert_eq!(retained, What::ContextMade(Context::Primary(3)));
        let released = of(Call::ContextDestroy, Manner::PrimaryRelease);
        assert_eq!(released, What::ContextEnded(Context::Primary(0x1000)));
        let reset = of(Call::ContextDestroy, Manner::PrimaryReset);
        assert_eq!(reset, What::ContextReset(0x1000));
        let ended = of(Call::ContextDestroy, Manner::Usual);
        assert_eq!(ended, What::ContextEnded(Context::Own(0x1000)));
    }

    #[test]
    fn only_handles_of_device_memory_of_the_application_are_told() {
        let on = |kind: u64, flags| {
            let seen = Record { detail: kind | 2 << 32, ..record(Kind::Call, Call::Create, flags) };
            what(&seen)
        };
        let created = What::Created { handle: 0x1000, bytes: Bytes(64), device: 2 };
        assert_eq!(on(1, Record::RETURNED), Some(created));
        assert_eq!(on(2, Record::RETURNED), None, "the host's");
        assert_eq!(on(1, Record::RETURNED | Record::ENGINE), None);
    }

    #[test]
    fn a_launch_brings_its_parameters() {
        let mut seen = record(Kind::Launch, Call::Launch, 0);
        seen.parameters[1] = 99;
        let Some(What::Launched { parameters, .. }) = what(&seen) else { panic!() };
        assert_eq!(parameters[..3], [0, 99, 0]);
    }
}
