//! A client that obeys its test line by line.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use cudarc::driver::sys::{self, CUdeviceptr, CUresult};

use super::{mapped, pools, say};
use crate::gpu::{self, Gpu, cu, free, others, stream, synchronize};

/// Obeys lines on standard input, answering each with one line: a test leads it, and plays the agent as well.
#[expect(clippy::too_many_lines, reason = "one arm for each order")]
pub(super) fn scripted() {
    let gpu = Gpu::open();
    let stream = stream();
    let mut buffers: Vec<(CUdeviceptr, usize)> = Vec::new();
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        match words[0] {
            "alloc" => match gpu::try_alloc(number(1) as usize) {
                Ok(pointer) => {
                    buffers.push((pointer, number(1) as usize));
                    say(&format!("{pointer}"));
                }
                Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => say("out of memory"),
                Err(error) => panic!("{error:?}"),
            },
            // From the driver's own pool, and made by the application itself: neither passes the engine.
            "pool" => {
                let mut pointer = 0;
                // SAFETY: `pointer` is where the answer goes.
                let result = unsafe { sys::cuMemAllocAsync(&raw mut pointer, number(1) as usize, stream) };
                say(gpu::outcome(result));
            }
            "piece" => match pools::try_take(pools::default(), number(1), stream) {
                Ok(at) => say(&format!("{at}")),
                Err(error) => say(gpu::outcome(error)),
            },
            "free_piece" => {
                // SAFETY: the driver judges it.
                let result = unsafe { sys::cuMemFreeAsync(number(1), stream) };
                say(&format!("{}", result as u32));
            }
            "managed" => {
                let mut pointer = 0;
                // SAFETY: `pointer` is where the answer goes; 1 lets every stream use it.
                let result = unsafe { sys::cuMemAllocManaged(&raw mut pointer, number(1) as usize, 1) };
                say(gpu::outcome(result));
            }
            "map_and_release" => say(&format!("{}", gpu::map_and_release(number(1) as usize))),
            "unmap" => {
                cu!(cuMemUnmap(number(1), number(2) as usize));
                say("unmapped");
            }
            "handle" => match mapped::create(number(1), number(2) as u32) {
                Ok(handle) => say(&format!("{handle}")),
                Err(error) => say(gpu::outcome(error)),
            },
            "reserve" => say(&format!("{}", mapped::reserve(number(1)))),
            "map" => {
                // SAFETY: the driver judges it.
                let result = unsafe { sys::cuMemMap(number(1), number(2) as usize, 0, number(3), 0) };
                say(&format!("{}", result as u32));
            }
            "access" => {
                say(&format!("{}", mapped::access(number(1), number(2), number(3) as u32) as u32));
            }
            "flags" => {
                let mut flags = 0;
                let place =
                    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: 0 };
                cu!(cuMemGetAccess(&raw mut flags, &raw const place, number(1)));
                say(&format!("{flags}"));
            }
            "release" => {
                // SAFETY: the driver judges it.
                let result = unsafe { sys::cuMemRelease(number(1)) };
                say(&format!("{}", result as u32));
            }
            "unreserve" => {
                // SAFETY: the driver judges it.
                let result = unsafe { sys::cuMemAddressFree(number(1), number(2) as usize) };
                say(&format!("{}", result as u32));
            }
            "export" => {
                let mut descriptor = 0_i32;
                let kind = sys::CUmemAllocationHandleType_enum(1);
                // SAFETY: `descriptor` is where the answer goes.
                let result = unsafe {
                    sys::cuMemExportToShareableHandle((&raw mut descriptor).cast(), number(1), kind, 0)
                };
                say(&format!("{}", result as u32));
            }
            "use" => {
                buffers.push((number(1), number(2) as usize));
                say("used");
            }
            "nvml" => {
                let (total, free) = gpu::nvml_memory();
                say(&format!("{total} {free}"));
            }
            "total" => {
                let mut total = 0_usize;
                cu!(cuDeviceTotalMem_v2(&raw mut total, 0));
                say(&format!("{total}"));
            }
            "create" => say(gpu::outcome(gpu::create(number(1) as usize))),
            "store" => {
                let (pointer, bytes) = buffers[number(1) as usize];
                gpu.launch("nvshare_store", stream, &[pointer, bytes as u64 / 8, number(2)]);
                synchronize(stream);
                say("stored");
            }
            "store_part" => {
                let (pointer, _) = buffers[number(1) as usize];
                gpu.launch("nvshare_store", stream, &[pointer + number(2), number(3) / 8, number(4)]);
                synchronize(stream);
                say("stored");
            }
            "wrong" => {
                let (pointer, bytes) = buffers[number(1) as usize];
                say(&format!("{}", others(pointer, bytes, number(2))));
            }
            "free" => {
                free(buffers[number(1) as usize].0);
                say("freed");
            }
            "spin" => {
                gpu.launch("nvshare_spin", stream, &[number(1)]);
                say("spinning");
            }
            "capture" => {
                cu!(cuStreamBeginCapture_v2(
                    stream,
                    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED
                ));
                say("captures");
            }
            "copy" => {
                let ((from, bytes), (to, _)) = (buffers[number(1) as usize], buffers[number(2) as usize]);
                cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, stream));
                say("copied");
            }
            "replay" => {
                let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
                cu!(cuStreamEndCapture(stream, &raw mut graph));
                cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
                cu!(cuGraphLaunch(executable, stream));
                synchronize(stream);
                say("replayed");
            }
            "share" => {
                // Asked for before memory is given to other hardware, which keeps its physical pages.
                let on = 1_u32;
                let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS;
                cu!(cuPointerSetAttribute((&raw const on).cast(), attribute, buffers[number(1) as usize].0));
                say("shared");
            }
            "info" => {
                let (mut free, mut total) = (0_usize, 0_usize);
                cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
                say(&format!("{free} {total}"));
            }
            "open" => {
                let path = std::ffi::CString::new(words[1]).unwrap();
                // SAFETY: a library of the test's own, without code.
                let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
                assert!(!opened.is_null(), "{path:?}");
                say("opened");
            }
            "end" => return,
            other => panic!("no command `{other}`"),
        }
    }
}
