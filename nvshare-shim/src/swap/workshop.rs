//! What the engine has in the application's context: a stream each way, events, the fingerprint kernel.

use super::prints::Fingerprinter;
use super::stream::{Event, Stream};
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::driver::driver;
use crate::log;
use crate::memory::device::Device;

/// How many extents are on their way at once, each way: one is copied while the next is prepared and the one before is
/// released.
pub const DEPTH: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct Workshop {
    /// The context that all of it belongs to.
    pub context: usize,
    /// Device to host.
    pub outward: Stream,
    /// Host to device; fingerprints too, for in a swap-out it has nothing else to do.
    pub inward: Stream,
    /// None where the kernel could not be loaded.
    pub prints: Option<Fingerprinter>,
    events: Vec<Event>,
}

impl Workshop {
    /// Makes `context` current in this thread and everything in it.
    pub fn open(device: &Device, context: usize) -> Result<Workshop, CUresult> {
        // SAFETY: the application uses this context, and says so before it destroys it.
        unsafe { driver().cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)) }.result()?;
        let outward = Stream::new()?;
        let inward = match Stream::new() {
            Ok(inward) => inward,
            Err(code) => {
                outward.close();
                return Err(code);
            }
        };
        let blocks = (device.extent_bytes / BLOCK_BYTES) as usize;
        let prints = match Fingerprinter::new(&inward, DEPTH + 1, blocks) {
            Ok(prints) => Some(prints),
            Err(code) => {
                log::warning!(
                    "the fingerprint kernel cannot be used on {} ({}): every swap-out copies everything",
                    device.id,
                    driver().error_name(code)
                );
                None
            }
        };
        Ok(Workshop { context, outward, inward, prints, events: Vec::new() })
    }

    /// An event, new or used before.
    pub fn event(&mut self) -> Result<Event, CUresult> {
        self.events.pop().map_or_else(Event::new, Ok)
    }

    /// Keeps an event for the next who needs one.
    pub fn keep(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Nothing of it is under way or used from now on, until it comes back; its context may end meanwhile.
    pub fn leave(&self) {
        let _ = self.outward.synchronize();
        let _ = self.inward.synchronize();
        // SAFETY: no context is a valid choice.
        let _ = unsafe { driver().cuCtxSetCurrent(std::ptr::null_mut()) };
    }

    /// Its context lives, and everything is still there.
    pub fn come_back(self) -> Option<Workshop> {
        // SAFETY: the driver has said that the context lives.
        let current =
            unsafe { driver().cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(self.context)) };
        current.ok().then_some(self)
    }
}
