//! The cards: which there are, what they are called, how much of them is in use.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt::Write;
use std::sync::Arc;

use nvshare_sim_card::{Bus, Cards, DEVICE_NAME};

use crate::parameters::{Buffer, Length, Out, Text, Versioned};
use crate::{Return, export, session};

/// `nvmlDevice_t`: a card's index + 1.
pub(crate) type Device = *mut c_void;

/// What one lane of each generation of PCIe carries, in bytes per second.
const LANES: [u64; 6] = [250_000_000, 500_000_000, 984_615_384, 1_969_230_769, 3_938_461_538, 7_562_500_000];

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
struct Memory2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlUtilization_t`.
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlPciInfo_t`.
#[repr(C)]
struct Pci {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

/// The link that a card says it has, generation and lanes: of all that there are the one nearest to the card's own speed.
fn link(device: Device) -> Result<(c_uint, c_uint), Return> {
    let speed = card(device)?.0.config().link_bytes_per_second;
    let widths = |(lane, generation): (u64, c_uint)| {
        [1, 2, 4, 8, 16].map(move |lanes: c_uint| (lane * u64::from(lanes), generation, lanes))
    };
    let links = LANES.into_iter().zip(1..).flat_map(widths);
    let nearest = links.min_by_key(|(bytes, ..)| bytes.abs_diff(speed));
    nearest.map(|(_, generation, lanes)| (generation, lanes)).ok_or(Return::NotSupported)
}

/// The card that a handle names.
pub(crate) fn card(device: Device) -> Result<(Arc<Cards>, usize), Return> {
    let cards = session::cards()?;
    let index = (device as usize).checked_sub(1).filter(|index| *index < cards.config().cards as usize);
    let index = index.ok_or(Return::InvalidArgument)?;
    while cards.bus(index) == Bus::Hung {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    if cards.bus(index) == Bus::There { Ok((cards, index)) } else { Err(Return::GpuIsLost) }
}

/// A handle for a card that answers.
fn handle(index: usize) -> Result<Device, Return> {
    let device = (index + 1) as Device;
    card(device).map(|_| device)
}

/// As CUDA and NVML print it.
fn uuid(cards: &Cards, index: usize) -> String {
    let mut text = String::from("GPU");
    for (place, byte) in cards.uuid(index).iter().enumerate() {
        if matches!(place, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("writing to a text");
    }
    text
}

fn text<const N: usize>(value: &str) -> [c_char; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes[..N - 1].iter_mut().zip(value.bytes()) {
        *to = from as c_char;
    }
    bytes
}

fn bus_id(index: usize) -> String {
    format!("00000000:{:02X}:00.0", index + 1)
}

fn by_index(index: c_uint) -> Result<Device, Return> {
    handle(*session::listed()?.get(index as usize).ok_or(Return::InvalidArgument)?)
}

/// The first card that `matches` the caller's text.
fn by_text(wanted: &Text, matches: impl Fn(&Cards, usize, &str) -> bool) -> Result<Device, Return> {
    let cards = session::cards()?;
    let wanted = wanted.get()?;
    let listed = session::listed()?;
    let found = listed.iter().find(|index| matches(&cards, **index, wanted));
    handle(*found.ok_or(Return::NotFound)?)
}

fn count() -> Result<c_uint, Return> {
    Ok(session::listed()?.len() as c_uint)
}

export! {
    fn nvmlDeviceGetCount(number: Out<c_uint>) {
        number.set(count()?)
    }

    fn nvmlDeviceGetCount_v2(number: Out<c_uint>) {
        number.set(count()?)
    }

    fn nvmlDeviceGetHandleByIndex(index: c_uint, device: Out<Device>) {
        device.set(by_index(index)?)
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: Out<Device>) {
        device.set(by_index(index)?)
    }

    fn nvmlDeviceGetHandleByUUID(wanted: Text, device: Out<Device>) {
        let found = by_text(&wanted, |cards, index, wanted| uuid(cards, index) == wanted)?;
        device.set(found)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(wanted: Text, device: Out<Device>) {
        let found = by_text(&wanted, |_, index, wanted| bus_id(index).eq_ignore_ascii_case(wanted))?;
        device.set(found)
    }

    fn nvmlDeviceGetIndex(device: Device, index: Out<c_uint>) {
        let (_, known) = card(device)?;
        let place = session::listed()?.iter().position(|listed| *listed == known);
        index.set(place.ok_or(Return::InvalidArgument)? as c_uint)
    }

    fn nvmlDeviceGetMinorNumber(device: Device, number: Out<c_uint>) {
        let (_, known) = card(device)?;
        number.set(known as c_uint)
    }

    fn nvmlDeviceGetUUID(device: Device, to: Buffer, length: Length) {
        let (cards, index) = card(device)?;
        to.set(length, &uuid(&cards, index))
    }

    fn nvmlDeviceGetName(device: Device, to: Buffer, length: Length) {
        card(device)?;
        to.set(length, DEVICE_NAME)
    }

    fn nvmlDeviceGetPciInfo_v3(device: Device, to: Out<Pci>) {
        let (_, index) = card(device)?;
        let bus = bus_id(index);
        let info = Pci {
            bus_id_legacy: text(&bus[4..]),
            domain: 0,
            bus: index as c_uint + 1,
            device: 0,
            device_id: 0,
            subsystem_id: 0,
            bus_id: text(&bus),
        };
        to.set(info)
    }

    fn nvmlDeviceGetCudaComputeCapability(device: Device, major: Out<c_int>, minor: Out<c_int>) {
        card(device)?;
        major.set(9)?;
        minor.set(0)
    }

    fn nvmlDeviceGetMemoryInfo(device: Device, to: Out<Memory>) {
        let (cards, index) = card(device)?;
        let usage = cards.usage(index);
        let info = Memory { total: usage.total, free: usage.free, used: usage.total - usage.free };
        to.set(info)
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Device, to: Versioned<Memory2>) {
        let (cards, index) = card(device)?;
        let version = size_of::<Memory2>() as c_uint | 2 << 24;
        let usage = cards.usage(index);
        let used = usage.total - usage.free;
        let info = Memory2 { version, total: usage.total, reserved: 0, free: usage.free, used };
        to.set(version, info)
    }

    fn nvmlDeviceGetUtilizationRates(device: Device, to: Out<Utilization>) {
        card(device)?;
        to.set(Utilization { gpu: 0, memory: 0 })
    }

    fn nvmlDeviceGetCurrPcieLinkGeneration(device: Device, to: Out<c_uint>) {
        let link = link(device)?;
        to.set(link.0)
    }

    fn nvmlDeviceGetMaxPcieLinkGeneration(device: Device, to: Out<c_uint>) {
        let link = link(device)?;
        to.set(link.0)
    }

    fn nvmlDeviceGetCurrPcieLinkWidth(device: Device, to: Out<c_uint>) {
        let link = link(device)?;
        to.set(link.1)
    }

    fn nvmlDeviceGetMaxPcieLinkWidth(device: Device, to: Out<c_uint>) {
        let link = link(device)?;
        to.set(link.1)
    }

    fn nvmlDeviceGetMigMode(device: Device, _current: *mut c_uint, _pending: *mut c_uint) {
        card(device)?;
        Err(Return::NotSupported)
    }
}
