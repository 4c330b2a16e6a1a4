//! Memsets: elements of one, two or four bytes, in rows.

#![expect(unsafe_code, reason = "the device's memory, found accessible")]

use std::sync::Arc;

use nvshare_sim_card::Lane;

use crate::call::Outcome;
use crate::context::{CONTEXTS, Context};
use crate::flight::Touch;
use crate::memory::{self, Location};
use crate::strict;
use crate::timeline::Timeline;

/// A memset.
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    /// Where it begins.
    pub(crate) address: u64,
    /// From one row to the next.
    pub(crate) pitch: u64,
    /// Bytes of an element: 1, 2 or 4.
    pub(crate) element: u64,
    /// What every element becomes.
    pub(crate) value: u32,
    /// Elements in a row.
    pub(crate) width: u64,
    /// Rows.
    pub(crate) height: u64,
    /// The number of the context that sets it; 0 for whichever it is launched in.
    pub(crate) context: u64,
}

impl Fill {
    pub(super) fn describe(&self) -> String {
        format!("a memset of {} bytes at {:#x}", self.bytes(), self.address)
    }

    fn row(&self) -> u64 {
        self.width.saturating_mul(self.element)
    }

    /// All bytes that are set.
    pub(crate) fn bytes(&self) -> u64 {
        self.row().saturating_mul(self.height)
    }

    fn in_context(&self) -> Option<Arc<Context>> {
        CONTEXTS.find(|context| context.id == self.context)
    }

    /// Whether it is about plain memory of another card without peer access, which an H200 refuses: at the call, and when a
    /// graph with it is instantiated.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.bytes() > 0
            && self.in_context().is_some_and(|context| memory::needs_peer_access(self.address, &context))
    }

    pub(super) fn touch(&self) -> Touch {
        let rows = self.height.saturating_sub(1).saturating_mul(self.pitch);
        let bytes = if self.bytes() == 0 { 0 } else { rows.saturating_add(self.row()) };
        Touch { start: self.address, bytes, write: true }
    }

    pub(super) fn execute(&self, timeline: &mut Timeline<'_>) -> Outcome {
        let touch = self.touch();
        if touch.bytes == 0 {
            return Ok(());
        }
        let device = self.in_context().map_or(timeline.context.device, |context| context.device);
        memory::access(touch.start, touch.bytes, true, device)
            .map_err(|why| strict::illegal(&format!("{}: {why}", self.describe())))?;
        let managed = memory::classify(self.address) == Location::Managed;
        let row = self.row();
        timeline.occupy(device, Lane::Compute, self.bytes(), 1, |timeline, range| {
            let mut at = range.start;
            while at < range.end {
                let length = (row - at % row).min(range.end - at);
                let address = self.address + (at / row) * self.pitch + at % row;
                if managed {
                    timeline.at = memory::touch_managed(device, address, length, true, timeline.at);
                }
                self.write(address, length, at % row);
                at += length;
            }
        })
    }

    /// Fills a piece of a row whose first byte has the number `phase` in it.
    fn write(&self, address: u64, length: u64, phase: u64) {
        let bytes = self.value.to_le_bytes();
        let pattern = &bytes[..self.element as usize];
        if pattern.iter().all(|byte| *byte == pattern[0]) {
            // SAFETY: the range was checked to be memory of the device.
            unsafe { std::ptr::write_bytes(address as *mut u8, pattern[0], length as usize) };
            return;
        }
        // SAFETY: as above; bytes have no alignment.
        let piece = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length as usize) };
        // Pieces are cut at multiples of 4096, rows at whole elements: the phase is that of an element's first byte.
        debug_assert_eq!(phase % self.element, 0);
        for element in piece.chunks_mut(pattern.len()) {
            element.copy_from_slice(&pattern[..element.len()]);
        }
    }
}
