//! Arrays whose memory moves. One is made with its mapping deferred: the handle that the application gets is the driver's own, and
//! what is behind it is a span of ours, of memory that is mapped at no address. It leaves and comes back by rows
//! ([`memory::arrays`](crate::memory::arrays)); textures and surfaces made of it go on (seen on an H200).

#![expect(unsafe_code, reason = "the driver is called")]

mod spares;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::spares::Known;
use super::allocate::fill;
use super::back::bury;
use super::virtuals::take_home;
use super::{free, promise};
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::device::tiles::{self, Form};
use crate::device::{self, Device, home};
use crate::driver::driver;
use crate::memory::arrays::{self, Image, Name, Placed};
use crate::memory::map;
use crate::memory::space::Space;
use crate::memory::virtuals::{Asked, Behind};
use crate::streams::{self, Relaxed};
use crate::turn::{dead, run_state};

/// `CUDA_ARRAY3D_LAYERED`, `_SURFACE_LDST`, `_CUBEMAP` and `_TEXTURE_GATHER`: with others the driver decides.
const UNDERSTOOD: u32 = 0x01 | 0x02 | 0x04 | 0x08;
/// At most one part in so many is lost where an array's memory is rounded up to whole pieces of the device's; a small array, of
/// which the driver puts many into one, is left to it.
const LOST: u64 = 8;
/// At most one part in so many of its bytes is taken besides, where the driver asks for whole tiles: for arrays of few rows that is
/// many times what it takes for one of its own.
const PADDED: u64 = 4;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// How long whoever ends an array that is on its way waits before it looks again.
const PAUSE: Duration = Duration::from_micros(200);

/// Makes an array of that form, or of so many levels, in the current context. `None`: the driver makes it.
pub fn create(form: Form, levels: Option<u32>) -> Option<Result<Name, CUresult>> {
    let bytes = form.bytes().filter(|_| form.flags & !UNDERSTOOD == 0)?;
    if bytes < BLOCK_BYTES - BLOCK_BYTES / LOST {
        return None;
    }
    let (device, context) = device::current().ok()??;
    if dead::has_failed(device) || !tiles::are_supported(device) {
        return None;
    }
    let _relaxed = Relaxed::new();
    free::sweep(device);
    streams::context_seen(streams::current_context()?);
    home::adopt(device, context);
    // What is behind it is moved in its own context.
    if device.state().home != Some(context) {
        return None;
    }
    let stream = stream(context)?;
    let asked = spares::Asked { context, form, levels };
    let name = match spares::find(&asked, bytes < LOST * BLOCK_BYTES) {
        Known::Drivers => return None,
        Known::Made(name) => name,
        Known::Nothing => tiles::make(form, levels).ok()?,
    };
    match behind(device, context, stream, name, levels) {
        Some(Ok(())) => Some(Ok(name)),
        // Its context has failed, and it goes with that.
        Some(Err(code)) if code.is_final() => Some(Err(code)),
        Some(Err(code)) => {
            spares::keep(asked, name, false);
            // What is wrong with it otherwise need not be wrong with one of the driver's.
            (code == CUresult::CUDA_ERROR_OUT_OF_MEMORY).then_some(Err(code))
        }
        None => {
            spares::keep(asked, name, true);
            None
        }
    }
}

/// Puts memory behind a new array; `None`: that is better left to the driver.
fn behind(
    device: &'static Device,
    context: usize,
    stream: usize,
    name: Name,
    levels: Option<u32>,
) -> Option<Result<(), CUresult>> {
    let needs = tiles::needs(name, device.kind.ordinal).ok()?;
    let bytes = needs.checked_next_multiple_of(device.granularity)?.next_multiple_of(BLOCK_BYTES);
    let image = Image(tiles::parts(name, levels.unwrap_or(1))?);
    let padding = needs.saturating_sub(image.bytes());
    if image.bytes() > bytes
        || bytes - needs > needs / LOST
        || padding > image.bytes() / PADDED
        || bytes > device.total
    {
        return None;
    }
    if !promise::may_grow(device, bytes) {
        return Some(Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    }
    let span = take_home(device, bytes)?;
    let number = map::number();
    let asked = Asked { tiles: true, ..Asked::default() };
    let placed = Placed { name, number, device: device.index, context, stream, span, image: Arc::new(image) };
    // Before anybody can move it.
    arrays::change(|arrays| arrays.made(placed.clone()));
    let add = |space: &mut Space| space.add_behind(span, bytes, bytes, Behind { number, asked });
    // SAFETY: nobody else has seen the array yet; the handle is its own, of a tile pool of this size.
    let place = |handle| unsafe { tiles::put(&placed, device.kind.ordinal, Some(handle)) };
    let filled = fill(device, span, bytes, add, place, || {
        device.state().homes.give_back(span, bytes);
    });
    if filled.is_err() {
        arrays::change(|arrays| arrays.forget(number));
    }
    Some(filled)
}

/// The stream of a context in which memory is put behind arrays. It ends with its context.
fn stream(context: usize) -> Option<usize> {
    if let Some(stream) = streams_of_contexts().get(&context) {
        return Some(*stream);
    }
    // Under a green context it would be that one's, and end with it.
    let _current = streams::Current::push(std::ptr::with_exposed_provenance_mut(context)).ok()?;
    let mut made = std::ptr::null_mut();
    // SAFETY: a place for the handle; the context is current.
    unsafe { driver().cuStreamCreate(&raw mut made, NON_BLOCKING) }.result().ok()?;
    // Another thread may have made one meanwhile: one is too many then, and is of no harm.
    Some(*streams_of_contexts().entry(context).or_insert(made.expose_provenance()))
}

fn streams_of_contexts() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    static STREAMS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends an array by `call`, if that does; `None`: it is not ours. Waits for what is under way with it, and for what the call waits
/// for; meanwhile nobody moves it.
pub fn destroy(name: Name, call: impl FnOnce() -> CUresult) -> Option<CUresult> {
    if !arrays::are_there() {
        return None;
    }
    let placed = arrays::change(|arrays| arrays.end(name))?;
    let device = device::by_index(placed.device)?;
    let _relaxed = Relaxed::new();
    // Its context may end, and take it along.
    let is_there = |space: &Space| {
        let behind = space.span(placed.span).and_then(|span| span.behind);
        behind.is_some_and(|behind| behind.number == placed.number)
    };
    let fixed = loop {
        let mut state = device.state();
        if !is_there(&state.space) {
            break None;
        }
        if let Some(fixed) = state.space.fix(placed.span) {
            break Some(fixed);
        }
        drop(state);
        std::thread::sleep(PAUSE);
    };
    run_state::reconsider();
    let result = call();
    let mut state = device.state();
    let Some(fixed) = fixed.filter(|_| is_there(&state.space)) else { return Some(result) };
    state.space.let_go(placed.span, fixed);
    if result.ok() {
        let remains = state.space.remove_span(placed.span);
        drop(state);
        arrays::change(|arrays| arrays.forget(placed.number));
        bury(device, remains);
    } else {
        drop(state);
        arrays::change(|arrays| arrays.goes_on(&placed));
        device.wake();
        run_state::reconsider();
    }
    Some(result)
}

/// A context is gone, and its arrays with it: called before anything can begin to leave, for whoever moved one of them now would use
/// what the driver has destroyed.
pub fn context_ended(context: usize) {
    streams_of_contexts().remove(&context);
    spares::context_ended(context);
    if !arrays::are_there() {
        return;
    }
    let ended = arrays::look().of_context(context);
    for number in ended {
        let Some(placed) = arrays::change(|arrays| arrays.forget(number)) else { continue };
        let Some(device) = device::by_index(placed.device) else { continue };
        // The engine has left the context: nothing of it is under way.
        let remains = device.state().space.remove_span(placed.span);
        bury(device, remains);
    }
}

/// As the driver's handle says.
pub fn name_of(array: sys::CUarray) -> Name {
    Name::Array(array.expose_provenance() as u64)
}

/// The same of a mipmapped one.
pub fn name_of_levels(array: sys::CUmipmappedArray) -> Name {
    Name::Mipmapped(array.expose_provenance() as u64)
}
