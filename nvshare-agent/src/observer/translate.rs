//! A record of the ring buffer as an observation.

use nvshare_common::event::{Kind, Record};
use nvshare_common::probe::Call;
use nvshare_common::units::{Bytes, DevicePtr, DeviceRange};

use crate::moment::Moment;
use crate::observation::{Observation, Process};

/// What a record of a call or launch tells about `process`; `None` for what nobody asks for: calls that failed, or
/// whose result is not known, and physical handles (it is their mappings that count).
pub(super) fn observation(record: &Record, process: Process) -> Option<Observation> {
    let range = DeviceRange { start: DevicePtr(record.address), bytes: Bytes(record.bytes) };
    if record.kind()? == Kind::Launch {
        let parameters = record.parameters.to_vec();
        return Some(Observation::Launched { process, at: Moment(record.time), parameters });
    }
    match record.call()? {
        call @ (Call::Alloc | Call::AllocAsync | Call::AllocManaged) => {
            let succeeded = record.returned() && record.result == 0;
            (succeeded && !record.engine()).then_some(Observation::Allocated { process, call, range })
        }
        Call::Free | Call::FreeAsync => {
            (!record.engine()).then_some(Observation::Freed { process, address: range.start })
        }
        Call::Map => Some(Observation::Mapped { process, range }),
        Call::Unmap => Some(Observation::Unmapped { process, range }),
        Call::Prefetch => Some(Observation::Prefetched { process, range }),
        Call::Advise => Some(Observation::Advised { process, range, advice: record.detail & 0xffff_ffff }),
        Call::ContextDestroy => Some(Observation::ContextDestroyed { process }),
        Call::Create | Call::Release | Call::Launch | Call::GraphLaunch | Call::Synchronize => None,
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
            assert_eq!(seen, Some(Observation::Mapped { process: PROCESS, range }));
        }
    }

    #[test]
    fn a_launch_brings_its_parameters() {
        let mut seen = record(Kind::Launch, Call::Launch, 0);
        seen.parameters[1] = 99;
        let Some(Observation::Launched { parameters, .. }) = observation(&seen, PROCESS) else { panic!() };
        assert_eq!(parameters[..3], [0, 99, 0]);
    }
}
