//! What the engine has in the application's context: a stream each way, events, the fingerprint kernel.

#![expect(unsafe_code, reason = "the driver is called")]

use std::time::{Duration, Instant};

use super::fingerprints::Fingerprinter;
use super::stream::{Event, Stream};
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::device::{Device, image};
use crate::driver::driver;
use crate::log;
use crate::turn::calm::Calm;

/// How many extents are on their way at once, each way: one is copied while the next is prepared and the one before is
/// released.
pub const DEPTH: usize = 3;
/// How many events are in use at once, at most: each way out has fingerprints and copies under way, and one between them.
const EVENTS: usize = 2 * DEPTH + 1;

/// How long after a failed load of the fingerprint kernel the next is tried, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// See the module.
#[derive(Debug)]
pub struct Resources {
    /// The context that all of it belongs to.
    pub context: usize,
    /// Device to host.
    pub outward: Stream,
    /// Host to device; fingerprints too, for in a swap-out it has nothing else to do.
    pub inward: Stream,
    /// None where the kernel could not be loaded, yet or at all.
    pub prints: Option<Fingerprinter>,
    /// When it is tried again, and after how long once more: it failed for want of memory, which others give back.
    again: Option<(Instant, Duration)>,
    events: Vec<Event>,
}

impl Resources {
    /// Makes `context` current in this thread and everything in it: when it is needed a driver with a thread stuck in a full
    /// stream makes none.
    pub fn open(device: &Device, context: usize, calm: &Calm) -> Result<Resources, CUresult> {
        // SAFETY: the application uses this context, and says so before it destroys it.
        unsafe { driver().cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)) }.result()?;
        let outward = Stream::new(calm)?;
        let inward = match Stream::new(calm) {
            Ok(inward) => inward,
            Err(code) => {
                outward.close(calm);
                return Err(code);
            }
        };
        let mut resources = Resources {
            context,
            outward,
            inward,
            prints: None,
            again: Some((Instant::now(), FIRST_PAUSE)),
            events: Vec::with_capacity(EVENTS),
        };
        while resources.events.len() < EVENTS {
            match Event::new(calm) {
                Ok(event) => resources.events.push(event),
                Err(code) => {
                    resources.close(calm);
                    return Err(code);
                }
            }
        }
        resources.prepare(device, calm);
        Ok(resources)
    }

    /// Half of it could not be made.
    fn close(self, calm: &Calm) {
        for event in self.events {
            event.close();
        }
        self.outward.close(calm);
        self.inward.close(calm);
    }

    /// Whether the fingerprint kernel is not there and it is time to try.
    pub fn lacks(&self, device: &Device) -> bool {
        let due = self.prints.is_none() && self.again.is_some_and(|(at, _)| at <= Instant::now());
        due && image::of(device).is_some()
    }

    /// Loads the fingerprint kernel if it is not there and it is time to try.
    pub fn prepare(&mut self, device: &Device, calm: &Calm) {
        let Some(image) = image::of(device) else { return };
        let Some((_, pause)) = self.again.take_if(|(at, _)| self.prints.is_none() && *at <= Instant::now())
        else {
            return;
        };
        let blocks = (device.extent_bytes / BLOCK_BYTES) as usize;
        match Fingerprinter::new(&image, &self.inward, DEPTH + 1, blocks, calm) {
            Ok(prints) => self.prints = Some(prints),
            Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                log::debug!(
                    "no memory for the fingerprint kernel on {} yet: tried again in {pause:?}",
                    device.id
                );
                self.again = Some((Instant::now() + pause, (pause * 2).min(LONGEST_PAUSE)));
            }
            Err(code) => log::warning!(
                "the fingerprint kernel cannot be used on {} ({}): every swap-out copies everything",
                device.id,
                driver().error_name(code)
            ),
        }
    }

    /// An event after what was started on `stream` until now.
    pub fn mark(&mut self, stream: impl Fn(&Resources) -> &Stream) -> Result<Event, CUresult> {
        let event = self.events.pop().expect("there are as many as are ever in use at once");
        let recorded = event.record(stream(self));
        if let Err(code) = recorded {
            self.events.push(event);
            return Err(code);
        }
        Ok(event)
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
    pub fn come_back(self) -> Option<Resources> {
        // SAFETY: the driver has said that the context lives.
        let current =
            unsafe { driver().cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(self.context)) };
        current.ok().then_some(self)
    }
}
