//! Copies of one, two or three dimensions, over the link or within the device.

#![expect(unsafe_code, reason = "memory that a copy is about, found accessible or vouched for")]

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::Lane;

use crate::call::Outcome;
use crate::flight::Touch;
use crate::memory::{self, Location};
use crate::strict;
use crate::timeline::{PIECE, Timeline};

/// One end of a copy: rows in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    /// Where it begins.
    pub(crate) address: u64,
    /// From one row to the next.
    pub(crate) pitch: u64,
    /// From one slice to the next.
    pub(crate) slice: u64,
}

/// A copy.
#[derive(Clone)]
pub(crate) struct Transfer {
    /// Where to.
    pub(crate) to: Plane,
    /// Where from.
    pub(crate) from: Plane,
    /// Bytes in a row.
    pub(crate) width: u64,
    /// Rows in a slice.
    pub(crate) height: u64,
    /// Slices.
    pub(crate) depth: u64,
    /// The devices that read the source and write the destination, where the call names contexts for them.
    pub(crate) by: Option<[usize; 2]>,
    /// The bytes themselves, where the driver took them at the call; `from` then points to them.
    pub(crate) staged: Option<Arc<[u8]>>,
}

/// Which way a piece goes, and at what price.
struct Route {
    lane: Option<(usize, Lane)>,
    slowdown: u64,
}

impl Transfer {
    /// A copy of `bytes` in one piece.
    pub(crate) fn linear(to: u64, from: u64, bytes: u64) -> Transfer {
        let plane = |address| Plane { address, pitch: bytes, slice: bytes };
        Transfer {
            to: plane(to),
            from: plane(from),
            width: bytes,
            height: 1,
            depth: 1,
            by: None,
            staged: None,
        }
    }

    /// All bytes that are copied.
    pub(crate) fn bytes(&self) -> u64 {
        self.width.saturating_mul(self.height).saturating_mul(self.depth)
    }

    /// From the first to the last byte of one end.
    fn extent(&self, plane: &Plane) -> u64 {
        let slices = (self.depth - 1).saturating_mul(plane.slice);
        slices.saturating_add((self.height - 1).saturating_mul(plane.pitch)).saturating_add(self.width)
    }

    pub(super) fn describe(&self) -> String {
        format!("a copy of {} bytes from {:#x} to {:#x}", self.bytes(), self.from.address, self.to.address)
    }

    pub(super) fn touches(&self) -> Vec<Touch> {
        if self.bytes() == 0 {
            return Vec::new();
        }
        let touch = |plane: &Plane, write| Touch { start: plane.address, bytes: self.extent(plane), write };
        vec![touch(&self.from, false), touch(&self.to, true)]
    }

    fn route(&self, own: usize) -> Route {
        let side = |plane: &Plane| match memory::classify(plane.address) {
            Location::Managed => Location::Device(own),
            location => location,
        };
        let (from, to) = (side(&self.from), side(&self.to));
        let slowdown = match (from, to) {
            (Location::Pageable, Location::Device(_)) if self.staged.is_none() => 2,
            (Location::Device(_), Location::Pageable) => 2,
            _ => 1,
        };
        let lane = match (from, to) {
            (Location::Device(a), Location::Device(b)) if a == b => Some((a, Lane::Compute)),
            (_, Location::Device(device)) => Some((device, Lane::ToDevice)),
            (Location::Device(device), _) => Some((device, Lane::ToHost)),
            _ => None,
        };
        Route { lane, slowdown }
    }

    pub(super) fn execute(&self, timeline: &mut Timeline<'_>) -> Outcome {
        let bytes = self.bytes();
        if bytes == 0 {
            return Ok(());
        }
        let own = timeline.context.device;
        // Plain memory of another card is staged through the host where there is no way between the cards; mapped memory is
        // for the devices that were given access.
        let [reads, writes] = self.by.unwrap_or([own; 2]);
        for (plane, write, by) in [(&self.from, false, reads), (&self.to, true, writes)] {
            memory::access(plane.address, self.extent(plane), write, by).map_err(|why| {
                let text = format!("{}: {why}", self.describe());
                if memory::tiles::is_bare(plane.address) {
                    strict::report(&text);
                    return CUresult::CUDA_ERROR_LAUNCH_FAILED;
                }
                strict::illegal(&text)
            })?;
        }
        let managed = [(&self.from, false), (&self.to, true)]
            .into_iter()
            .filter(|(plane, _)| memory::classify(plane.address) == Location::Managed);
        let managed: Vec<(Plane, bool)> = managed.map(|(plane, write)| (*plane, write)).collect();
        let Route { lane, slowdown } = self.route(own);
        let piece = |timeline: &mut Timeline<'_>, range: Range<u64>| {
            for (plane, write) in &managed {
                let at = plane.address + self.place(plane, range.start);
                let length = self.place(plane, range.end - 1) + 1 - self.place(plane, range.start);
                timeline.at = memory::touch_managed(own, at, length, *write, timeline.at);
            }
            self.copy(range);
        };
        match lane {
            Some((device, lane)) => {
                timeline.occupy(device, lane, bytes, slowdown, piece)?;
                if lane != Lane::Compute {
                    timeline.pass(crate::device::latency());
                }
            }
            None => {
                for from in (0..bytes).step_by(PIECE as usize) {
                    timeline.check()?;
                    piece(timeline, from..bytes.min(from + PIECE));
                }
            }
        }
        Ok(())
    }

    /// How far from the source's beginning the byte with this number lies.
    pub(crate) fn offset_in_source(&self, byte: u64) -> u64 {
        self.place(&self.from, byte)
    }

    /// Where the byte with this number lies in a plane.
    fn place(&self, plane: &Plane, byte: u64) -> u64 {
        let (row, column) = (byte / self.width, byte % self.width);
        (row / self.height) * plane.slice + (row % self.height) * plane.pitch + column
    }

    /// Copies the bytes with these numbers.
    fn copy(&self, range: Range<u64>) {
        let packed = |plane: &Plane| {
            (plane.pitch == self.width || self.height == 1)
                && (plane.slice == self.width * self.height || self.depth == 1)
        };
        let whole = packed(&self.from) && packed(&self.to);
        let mut at = range.start;
        while at < range.end {
            let length =
                if whole { range.end - at } else { (self.width - at % self.width).min(range.end - at) };
            let from = self.from.address + self.place(&self.from, at);
            let to = self.to.address + self.place(&self.to, at);
            // SAFETY: both ranges were checked to be memory of the device or vouched for by the application, which must
            // keep them until the copy is over; `copy` allows them to overlap.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, length as usize) };
            at += length;
        }
    }
}

/// An error the driver would give at the call already: an end that must be memory of a device and is not.
pub(crate) fn device_end(address: u64) -> Outcome {
    match memory::classify_for_copy(address) {
        Location::Pageable => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        _ => Ok(()),
    }
}
