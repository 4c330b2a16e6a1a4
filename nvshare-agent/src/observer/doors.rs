//! Where the observer reads bytes that other processes wrote, each as a function of these bytes alone: what the fuzzer
//! (`xtask/fuzz`) knocks at. Libraries come in through [`super::Library::read`], code through [`super::choose_site`].

use nvshare_agent_core::observation::Observation;
use nvshare_agent_core::process::Process;
use nvshare_common::event::Record;

use super::{find, mappings, translate};

/// The libraries named in the text of a process' `/proc/PID/maps`.
pub fn maps(text: &str) -> Vec<String> {
    find::libraries(text).into_iter().map(|library| library.path).collect()
}

/// The process and the file in a record of a new mapping, if it is a libcuda's.
pub fn mapping(record: &[u8]) -> Option<(u32, String)> {
    let mut told = None;
    mappings::tell_if_libcuda(record, &mut |mapped| told = Some((mapped.pid, mapped.library.path)));
    told
}

/// What a record of the ring buffer tells.
pub fn record(bytes: &[u8]) -> Option<Observation> {
    let record = Record::decode(bytes)?;
    let what = translate::what(&record)?;
    Some(Observation { process: Process { pid: record.tgid(), start: 1 }, what })
}
