//! The eBPF programs in the kernel: loaded from their object, attached to libraries.
//!
//! aya makes the maps and loads the programs for tracepoints. The probes are loaded for `uprobe_multi` where the kernel
//! has it (6.6), by aya-obj and our own call: hundreds of places attach with one link in 10 ms and are gone with it.
//! Elsewhere they are loaded and attached one by one by aya. Nothing is pinned: what is attached ends with the agent.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, Queue, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{RawTracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};

use super::bpf;
use super::library::{Library, Point};
use super::load_error::{LoadError, chain, load_error, program_error, refused};
use super::{Options, Part};

/// A library could not be observed in full, or not at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach to {symbol} in {library}: {error}")]
pub struct AttachError {
    /// The function.
    pub symbol: &'static str,
    /// The file.
    pub library: PathBuf,
    /// The kernel's error.
    pub error: String,
}

/// The programs for the probes.
enum Probes {
    /// One link for many places.
    Multi { entry: OwnedFd, returned: OwnedFd },
    /// A link for each.
    Single,
}

/// Everything of ours in the kernel.
pub(super) struct Programs {
    ebpf: Ebpf,
    probes: Probes,
    /// Hits by place.
    hits: PerCpuArray<MapData, u64>,
}

/// What the rest of the observer reads and writes.
pub(super) struct Maps {
    /// The slots' memory is this map's.
    pub slots: MapData,
    /// That of their lanes.
    pub lanes: MapData,
    /// Free slots.
    pub free: Queue<MapData, u32>,
    /// Process to slot.
    pub owners: HashMap<MapData, u32, u32>,
    /// Records.
    pub records: RingBuf<MapData>,
}

/// The links of one library. The probes at entry go before those at return: a call whose return nobody sees leaves
/// nothing behind, but one that is seen only to return would not be counted.
pub(super) struct Links {
    _entry: Vec<Link>,
    _returned: Vec<Link>,
    /// What could not be attached.
    pub failed: Vec<AttachError>,
}

/// How places are attached.
#[derive(Clone, Copy)]
struct How {
    at_return: bool,
    followed: bool,
    sites: u32,
}

enum Link {
    Multi { _descriptor: OwnedFd },
    Single { _link: UProbeLink },
}

impl Programs {
    /// Reads and loads the object; nothing is attached to any library yet.
    pub(super) fn load(options: &Options) -> Result<(Programs, Maps), LoadError> {
        let object = options.object.as_path();
        let bytes = std::fs::read(object).map_err(|error| LoadError::Read(object.to_owned(), error))?;
        // Before Linux 5.11 maps were charged against this limit; where it may not be raised they may still fit.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
        let mut ebpf = EbpfLoader::new()
            .override_global("SAMPLE_EVERY", &options.sample_every, true)
            .override_global("PART", &options.part.as_ref().map_or(0, Part::id), true)
            .load(&bytes)
            .map_err(|error| load_error(object, &error))?;
        let multi = if options.single { None } else { load_multi(&ebpf, &bytes, object)? };
        let probes = if let Some(probes) = multi {
            probes
        } else {
            for name in ["entry", "returned"] {
                let program: &mut UProbe = program(&mut ebpf, name, object)?;
                program.load().map_err(|error| program_error(name, &error))?;
            }
            Probes::Single
        };
        for (name, tracepoint) in [("exec", "sched_process_exec"), ("exit", "sched_process_exit")] {
            let program: &mut RawTracePoint = program(&mut ebpf, name, object)?;
            program.load().map_err(|error| program_error(name, &error))?;
            program.attach(tracepoint).map_err(|error| program_error(name, &error))?;
        }
        let wrong = |error: &dyn std::fmt::Display| LoadError::Object(object.to_owned(), error.to_string());
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| wrong(&format!("it has no map `{name}`")));
        let mut array = |name: &str| match take(name)? {
            Map::Array(map) => Ok(map),
            _ => Err(wrong(&format!("its map `{name}` is no array"))),
        };
        let (slots, lanes) = (array("SLOTS")?, array("LANES")?);
        let maps = Maps {
            slots,
            lanes,
            free: Queue::try_from(take("FREE")?).map_err(|error| wrong(&error))?,
            owners: HashMap::try_from(take("OWNERS")?).map_err(|error| wrong(&error))?,
            records: RingBuf::try_from(take("RECORDS")?).map_err(|error| wrong(&error))?,
        };
        let hits = PerCpuArray::try_from(take("HITS")?).map_err(|error| wrong(&error))?;
        Ok((Programs { ebpf, probes, hits }, maps))
    }

    /// Whether many places share a link.
    pub(super) fn multi(&self) -> bool {
        matches!(self.probes, Probes::Multi { .. })
    }

    /// The maps and programs, for what aya-log needs of them.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// How often a place was hit so far, whatever was observed there.
    pub(super) fn hits(&self, site: u32) -> u64 {
        self.hits.get(&site, 0).map_or(0, |each| each.iter().fold(0, |sum, hits| hits.wrapping_add(sum)))
    }

    /// What a hit costs in our programs on the average, in nanoseconds, at entry and at return; the trap to them not counted.
    /// None where the kernel does not measure it.
    pub(super) fn cost(&self) -> [Option<u64>; 2] {
        let cost = |(time, count): (u64, u64)| time.checked_div(count);
        match &self.probes {
            Probes::Multi { entry, returned } => {
                [entry, returned].map(|program| cost(bpf::cost(program.as_fd()).ok()?))
            }
            Probes::Single => ["entry", "returned"].map(|name| {
                let program: &UProbe = self.ebpf.program(name)?.try_into().ok()?;
                cost(bpf::cost(program.fd().ok()?.as_fd()).ok()?)
            }),
        }
    }

    /// Observes some of the places of a library: the calls and, with `returns`, the results of those that have some. Hits are
    /// counted from `sites` on in the order of the library's places; 0: they are not.
    pub(super) fn attach(&mut self, library: &Library, all: &[&Point], returns: bool, sites: u32) -> Links {
        let mut failed = Vec::new();
        let returning: Vec<&Point> =
            if returns { all.iter().copied().filter(|point| point.returns).collect() } else { Vec::new() };
        let how = How { at_return: true, followed: returns, sites };
        let returned = self.attach_points(library, &returning, how, &mut failed);
        let entry = self.attach_points(library, all, How { at_return: false, ..how }, &mut failed);
        Links { _entry: entry, _returned: returned, failed }
    }

    /// Observes the returns of one place in any file, for a trial.
    pub(super) fn attach_return(&self, path: &str, offset: u64) -> Option<io::Result<OwnedFd>> {
        let Probes::Multi { returned, .. } = &self.probes else { return None };
        let path = CString::new(path).ok()?;
        Some(bpf::link_multi(returned.as_fd(), &path, &[offset], &[0], true))
    }

    fn attach_points(
        &mut self,
        library: &Library,
        points: &[&Point],
        how: How,
        failed: &mut Vec<AttachError>,
    ) -> Vec<Link> {
        if points.is_empty() {
            return Vec::new();
        }
        match self.link(library, points, how) {
            Ok(links) => links,
            // One bad place spoils a link: find it.
            Err(_) if points.len() > 1 => {
                let (left, right) = points.split_at(points.len() / 2);
                let mut links = self.attach_points(library, left, how, failed);
                links.extend(self.attach_points(library, right, how, failed));
                links
            }
            Err(error) => {
                let error = AttachError { symbol: points[0].symbol, library: library.path.clone(), error };
                tracing::warn!(%error, "not observed");
                failed.push(error);
                Vec::new()
            }
        }
    }

    fn link(
        &mut self,
        library: &Library,
        points: &[&Point],
        How { at_return, followed, sites }: How,
    ) -> Result<Vec<Link>, String> {
        let path = library.descriptor_path();
        let cookie = |point: &Point| {
            let place =
                library.points.iter().position(|known| std::ptr::eq(known, point)).unwrap_or_default();
            let site = if sites == 0 { 0 } else { sites + place as u32 };
            Library::cookie(point, followed).at(site).0
        };
        match &self.probes {
            Probes::Multi { entry, returned } => {
                let program = if at_return { returned } else { entry };
                let path = CString::new(path).map_err(|error| error.to_string())?;
                let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
                let cookies: Vec<u64> = points.iter().map(|point| cookie(point)).collect();
                bpf::link_multi(program.as_fd(), &path, &offsets, &cookies, at_return)
                    .map(|descriptor| vec![Link::Multi { _descriptor: descriptor }])
                    .map_err(|error| error.to_string())
            }
            Probes::Single => {
                let name = if at_return { "returned" } else { "entry" };
                let program: &mut UProbe = self
                    .ebpf
                    .program_mut(name)
                    .and_then(|program| program.try_into().ok())
                    .ok_or("the program is missing")?;
                let mut links = Vec::new();
                for point in points {
                    let at = UProbeAttachPoint {
                        location: UProbeAttachLocation::AbsoluteOffset(point.offset),
                        cookie: Some(cookie(point)),
                    };
                    let link = program
                        .attach(at, &path, UProbeScope::AllProcesses)
                        .and_then(|id| program.take_link(id))
                        .map_err(|error| chain(&error))?;
                    links.push(Link::Single { _link: link });
                }
                Ok(links)
            }
        }
    }
}

/// Loads the two probe programs for `uprobe_multi`, over the maps that aya made; `None` if the kernel has it not.
fn load_multi(ebpf: &Ebpf, bytes: &[u8], path: &Path) -> Result<Option<Probes>, LoadError> {
    let wrong = |error: &dyn std::error::Error| LoadError::Object(path.to_owned(), chain(error));
    let mut object = aya_obj::Object::parse(bytes).map_err(|error| wrong(&error))?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps: Vec<(String, RawFd, aya_obj::Map)> = object
        .maps
        .iter()
        .filter_map(|(name, map)| {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::Queue(data)
            | Map::RingBuf(data)) = ebpf.map(name)?
            else {
                return None;
            };
            Some((name.clone(), data.fd().as_fd().as_raw_fd(), map.clone()))
        })
        .collect();
    object
        .relocate_maps(maps.iter().map(|(name, map, definition)| (name.as_str(), *map, definition)), &text)
        .map_err(|error| wrong(&error))?;
    object.relocate_calls(&text).map_err(|error| wrong(&error))?;
    let load = |name: &'static str| {
        let program = object.programs.get(name);
        let function = program.and_then(|program| object.functions.get(&program.function_key()));
        let (Some(program), Some(function)) = (program, function) else {
            return Err(LoadError::Object(path.to_owned(), format!("it has no program `{name}`")));
        };
        bpf::load_multi(name, &program.license, &function.instructions)
            .map_err(|(error, log)| refused(name, &error, log))
    };
    match load("entry") {
        Ok(entry) => Ok(Some(Probes::Multi { entry, returned: load("returned")? })),
        // Refused before the verifier looked at it: it is the kind of program that is not known.
        Err(LoadError::Program { error, log, .. }) if log.is_empty() => {
            tracing::info!(
                error,
                "no uprobe_multi in this kernel (before 6.6): probes are attached one by one"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str, object: &Path) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| {
        LoadError::Object(object.to_owned(), format!("it has no program `{name}` of its kind"))
    })
}
