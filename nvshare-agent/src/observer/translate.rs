//! A record of the ring buffer as an observation.

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Context, Observation};
use nvshare_agent_core::process::Process;
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::{Kind, Record};
use nvshare_common::probe::{Call, Manner};

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: u64 = 1;

/// What a record of a call or launch tells about `process`; `None` for what nobody asks for: calls that failed, those whose
/// result is needed and not known, and what the shim's own threads do with physical handles (it is their mappings that
/// count).
pub(super) fn observation(record: &Record, process: Process) -> Option<Observation> {
    let range = DeviceRange { start: DevicePtr(record.address), bytes: Bytes(record.bytes) };
    if record.kind()? == Kind::Launch {
        let parameters = record.parameters.to_vec();
        return Some(Observation::Launched { process, at: Moment(record.time), parameters });
    }
    if record.returned() && record.result != 0 {
        return None;
    }
    let (known, application) = (record.returned(), !record.engine());
    // Where returns are not observed, what takes memory away is taken for done: the process is marked as inexact then.
    match record.call()? {
        call @ (Call::Alloc | Call::AllocAsync | Call::AllocManaged) => {
            (known && application).then_some(Observation::Allocated { process, call, range })
        }
        Call::Free | Call::FreeAsync => {
            application.then_some(Observation::Freed { process, address: range.start })
        }
        Call::Create => {
            let (kind, device) = (record.detail & 0xffff_ffff, (record.detail >> 32) as u32);
            let (handle, bytes) = (record.address, range.bytes);
            (known && application && kind == ON_DEVICE).then_some(Observation::Created {
                process,
                handle,
                bytes,
                device,
            })
        }
        // What is imported is another process's memory.
        Call::Handle if record.manner() == Some(Manner::Import) => None,
        Call::Handle => {
            (known && application).then_some(Observation::Retained { process, handle: record.address })
        }
        Call::Release => application.then_some(Observation::Released { process, handle: record.address }),
        Call::Map => Some(Observation::Mapped { process, range, handle: record.further }),
        Call::Unmap => Some(Observation::Unmapped { process, range }),
        Call::Prefetch => Some(Observation::Prefetched { process, range }),
        Call::Advise => Some(Observation::Advised { process, range, advice: record.detail & 0xffff_ffff }),
        Call::ContextCreate => {
            let context = match record.manner()? {
                Manner::PrimaryRetain => Context::Primary(record.bytes as u32),
                _ => Context::Own(record.address),
            };
            known.then_some(Observation::ContextMade { process, context })
        }
        Call::ContextDestroy => Some(match record.manner()? {
            Manner::PrimaryReset => Observation::ContextReset { process, device: record.address as u32 },
            Manner::PrimaryRelease => {
                Observation::ContextEnded { process, context: Context::Primary(record.address as u32) }
            }
            _ => Observation::ContextEnded { process, context: Context::Own(record.address) },
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

    const PROCESS: Process = Process { pid: 7, start: 8 };

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
        let expected = Observation::Allocated { process: PROCESS, call: Call::Alloc, range };
        assert_eq!(observation(&seen, PROCESS), Some(expected));
        assert_eq!(observation(&Record { result: 2, ..seen }, PROCESS), None);
        assert_eq!(observation(&record(Kind::Call, Call::Alloc, 0), PROCESS), None);
    }

    #[test]
    fn the_engines_mappings_are_told_like_the_applications() {
        let range = DeviceRange { start: DevicePtr(0x1000), bytes: Bytes(64) };
        for flags in [0, Record::ENGINE] {
            let seen = observation(&record(Kind::Call, Call::Map, flags), PROCESS);
            assert_eq!(seen, Some(Observation::Mapped { process: PROCESS, range, handle: 0 }));
        }
    }

    #[test]
    fn a_call_that_failed_changed_nothing() {
        for call in [Call::Free, Call::FreeAsync, Call::Release, Call::Unmap, Call::ContextDestroy] {
            let failed = Record { result: 1, ..record(Kind::Call, call, Record::RETURNED) };
            assert_eq!(observation(&failed, PROCESS), None, "{}", call.name());
            assert!(observation(&record(Kind::Call, call, Record::RETURNED), PROCESS).is_some());
        }
    }

    #[test]
    fn a_primary_context_is_told_by_its_device_and_others_by_their_handle() {
        let of = |call, manner: Manner| {
            let flags = Record::RETURNED | (manner as u64) << 24;
            let seen = Record { bytes: 3, ..record(Kind::Call, call, flags) };
            observation(&seen, PROCESS).unwrap()
        };
        let process = PROCESS;
        let retained = of(Call::ContextCreate, Manner::PrimaryRetain);
        assert_eq!(retained, Observation::ContextMade { process, context: Context::Primary(3) });
        let released = of(Call::ContextDestroy, Manner::PrimaryRelease);
        assert_eq!(released, Observation::ContextEnded { process, context: Context::Primary(0x1000) });
        let reset = of(Call::ContextDestroy, Manner::PrimaryReset);
        assert_eq!(reset, Observation::ContextReset { process, device: 0x1000 });
        let ended = of(Call::ContextDestroy, Manner::Usual);
        assert_eq!(ended, Observation::ContextEnded { process, context: Context::Own(0x1000) });
    }

    #[test]
    fn only_handles_of_device_memory_of_the_application_are_told() {
        let on = |kind: u64, flags| {
            let seen = Record { detail: kind | 2 << 32, ..record(Kind::Call, Call::Create, flags) };
            observation(&seen, PROCESS)
        };
        let created = Observation::Created { process: PROCESS, handle: 0x1000, bytes: Bytes(64), device: 2 };
        assert_eq!(on(1, Record::RETURNED), Some(created));
        assert_eq!(on(2, Record::RETURNED), None, "the host's");
        assert_eq!(on(1, Record::RETURNED | Record::ENGINE), None);
    }

    #[test]
    fn a_launch_brings_its_parameters() {
        let mut seen = record(Kind::Launch, Call::Launch, 0);
        seen.parameters[1] = 99;
        let Some(Observation::Launched { parameters, .. }) = observation(&seen, PROCESS) else { panic!() };
        assert_eq!(parameters[..3], [0, 99, 0]);
    }
}
