//! Green contexts, and the parts of devices that they are made of. Only the number of multiprocessors of a part is kept.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevResourceDesc, CUdevice, CUevent, CUgreenCtx, CUresult, CUstream};

use crate::completion::Completion;
use crate::context::{Queue, green};
use crate::device::{self, MULTIPROCESSORS};
use crate::execution::event::Record;
use crate::execution::stream::{STREAMS, Stream};
use crate::execution::streams;
use crate::execution::work::Work;
use crate::export::export;
use crate::handles::Registry;
use crate::lifetime;
use crate::parameters::{Count, In, List, Maybe, Out, Places, Room};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_DEV_RESOURCE_TYPE_SM`.
const MULTIPROCESSOR: c_uint = 1;
/// `CU_GREEN_CTX_DEFAULT_STREAM`, which must be asked for.
const DEFAULT_STREAM: c_uint = 1;
/// `CU_STREAM_NON_BLOCKING`, which must be asked for.
const NON_BLOCKING: c_uint = 1;
/// Parts have a multiple of so many multiprocessors, and at least so many.
const TOGETHER: c_uint = 8;

/// `CUdevResource` of driver 12.9.
#[repr(C)]
#[derive(Clone, Copy)]
struct Resource {
    kind: c_uint,
    padding: [u8; 92],
    multiprocessors: c_uint,
    more: [u8; 44],
}

impl Resource {
    fn of(multiprocessors: c_uint) -> Resource {
        Resource { kind: MULTIPROCESSOR, padding: [0; 92], multiprocessors, more: [0; 44] }
    }
}

/// `CUdevResourceDesc`: how many multiprocessors a green context made of it gets. They are never given back.
struct Description(c_uint);

static DESCRIPTIONS: Registry<Description> = Registry::new();

export! {
    fn cuDeviceGetDevResource(of: CUdevice, resource: Out<Resource>, kind: c_uint) |cx| {
        device::index(of)?;
        if kind != MULTIPROCESSOR {
            return Err(CUresult::CUDA_ERROR_INVALID_RESOURCE_TYPE);
        }
        resource.set(Resource::of(MULTIPROCESSORS as c_uint))
    }

    fn cuGreenCtxGetDevResource(handle: CUgreenCtx, resource: Out<Resource>, kind: c_uint) |cx| {
        if kind != MULTIPROCESSOR {
            return Err(CUresult::CUDA_ERROR_INVALID_RESOURCE_TYPE);
        }
        resource.set(Resource::of(green::by_handle(handle)?.multiprocessors))
    }

    fn cuDevSmResourceSplitByCount(
        groups: Places<Resource>, count: Room<c_uint>, whole: In<Resource>, rest: Maybe<Resource>, flags: c_uint,
        least: c_uint,
    ) |cx| {
        let (whole, room) = (*whole.get()?, count.count()?);
        let each = least.max(1).next_multiple_of(TOGETHER);
        let possible = whole.multiprocessors / each;
        let wanted = Count::from(room).get() as c_uint;
        let made = if groups.is_null() { possible } else { wanted.min(possible) };
        if made == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
        }
        if !groups.is_null() {
            groups.fill(room, std::iter::repeat_n(Ok(Resource::of(each)), made as usize))?;
        }
        rest.set(Resource::of(whole.multiprocessors - made * each));
        count.set(made)
    }

    fn cuDevResourceGenerateDesc(
        made: Out<CUdevResourceDesc>, resources: List<Resource>, count: Count<c_uint>,
    ) |cx| {
        let resources = resources.of(count)?;
        if made.is_null() || resources.is_empty() {
            return Err(INVALID);
        }
        if resources.iter().any(|resource| resource.kind != MULTIPROCESSOR) {
            return Err(CUresult::CUDA_ERROR_INVALID_RESOURCE_TYPE);
        }
        let all = resources.iter().map(|resource| resource.multiprocessors).sum();
        made.set(DESCRIPTIONS.insert(Arc::new(Description(all))))
    }

    fn cuGreenCtxCreate(made: Out<CUgreenCtx>, description: CUdevResourceDesc, of: CUdevice, flags: c_uint) |cx| {
        let description = DESCRIPTIONS.get(description).ok_or(INVALID)?;
        if made.is_null() || flags != DEFAULT_STREAM {
            return Err(INVALID);
        }
        let green = lifetime::green::create(device::index(of)?, description.0)?;
        made.set(green.handle())
    }

    fn cuGreenCtxDestroy(handle: CUgreenCtx) |cx| {
        lifetime::green::destroy(&green::by_handle(handle)?);
        Ok(())
    }

    fn cuCtxFromGreenCtx(context: Out<CUcontext>, handle: CUgreenCtx) |cx| {
        context.set(green::by_handle(handle)?.context_handle())
    }

    fn cuGreenCtxGetId(handle: CUgreenCtx, id: Out<u64>) |cx| {
        id.set(green::by_handle(handle)?.id)
    }

    fn cuGreenCtxStreamCreate(made: Out<CUstream>, handle: CUgreenCtx, flags: c_uint, priority: c_int) |cx| {
        let green = green::by_handle(handle)?;
        if made.is_null() || flags != NON_BLOCKING {
            return Err(INVALID);
        }
        green.usable()?;
        green.primary.jam.pass();
        let priority = priority.clamp(super::stream::GREATEST_PRIORITY, 0);
        let stream = Stream::of_green(&green, flags, priority);
        streams::keep(&stream);
        made.set(STREAMS.insert(stream))
    }

    fn cuGreenCtxRecordEvent(handle: CUgreenCtx, event: CUevent) |cx| {
        let (green, event) = (green::by_handle(handle)?, cx.event(event)?);
        let pending: Vec<_> = streams::of_green(&green).iter().filter_map(|stream| stream.last()).collect();
        // A stream that nobody else has: its only work is to wait for all of them.
        let stream = Stream::of_green(&green, NON_BLOCKING, 0);
        let done: Arc<Completion> = stream.enqueue((event.to_record(), None), &pending, false);
        stream.close();
        event.set(Record::Work(done));
        Ok(())
    }

    fn cuGreenCtxWaitEvent(handle: CUgreenCtx, event: CUevent) |cx| {
        let (green, event) = (green::by_handle(handle)?, cx.event(event)?);
        let (work, after) = match event.record() {
            Record::Work(completion) => (Work::Nothing, vec![completion]),
            Record::Shared(awaited) => (Work::Await(awaited), Vec::new()),
            Record::None | Record::Captured(_) => return Ok(()),
        };
        for stream in streams::of_green(&green) {
            stream.enqueue((work.clone(), None), &after, false);
        }
        Ok(())
    }
}
