//! Programs that map their memory themselves.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUdeviceptr, CUresult, CUstream};

use super::random::Random;
use crate::gpu::{self, Gpu, cu, others, stream, synchronize};

const BLOCK: u64 = 2 << 20;

/// Physical memory on the first device, that may be exported as these types.
pub(crate) fn create(bytes: u64, types: u32) -> Result<u64, CUresult> {
    // SAFETY: all zero is a valid value of this plain struct.
    let mut property: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    property.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    property.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    property.requestedHandleTypes = sys::CUmemAllocationHandleType_enum(types);
    let mut handle = 0;
    // SAFETY: `handle` is where the answer goes; the property lives until the call returns.
    match unsafe { sys::cuMemCreate(&raw mut handle, bytes as usize, &raw const property, 0) } {
        CUresult::CUDA_SUCCESS => Ok(handle),
        error => Err(error),
    }
}

pub(crate) fn reserve(bytes: u64) -> CUdeviceptr {
    let mut at = 0;
    cu!(cuMemAddressReserve(&raw mut at, bytes as usize, 0, 0, 0));
    at
}

/// The answer to giving the first device access: 0 none, 1 to read, 3 to write.
pub(crate) fn access(at: CUdeviceptr, bytes: u64, flags: u32) -> CUresult {
    let location = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: 0 };
    let flags = match flags {
        0 => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_NONE,
        1 => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
        _ => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    let grant = sys::CUmemAccessDesc { location, flags };
    // SAFETY: the description lives until the call returns.
    unsafe { sys::cuMemSetAccess(at, bytes as usize, &raw const grant, 1) }
}

fn map(at: CUdeviceptr, bytes: u64, handle: u64) {
    cu!(cuMemMap(at, bytes as usize, 0, handle, 0));
    assert_eq!(access(at, bytes, 3), CUresult::CUDA_SUCCESS);
}

fn unmap(at: CUdeviceptr, bytes: u64) {
    cu!(cuMemUnmap(at, bytes as usize));
}

fn store(gpu: &Gpu, stream: CUstream, at: CUdeviceptr, bytes: u64, value: u64) {
    gpu.launch("nvshare_store", stream, &[at, bytes / 8, value]);
    synchronize(stream);
}

/// What the model knows of a handle.
struct Made {
    handle: u64,
    bytes: u64,
    held: bool,
    value: Option<u64>,
    places: Vec<usize>,
}

/// Random handles, mapped at random places, once, twice or nowhere; each is checked against what was last written to it.
pub(super) fn random(seed: u64, operations: u64) {
    const PLACES: usize = 12;
    const LARGEST: u64 = 5 * BLOCK;
    let gpu = Gpu::open();
    let stream = stream();
    let before = gpu::free_bytes();
    let mut random = Random::new(seed);
    let reserved = reserve(PLACES as u64 * LARGEST);
    let place = |index: usize| reserved + index as u64 * LARGEST;
    let mut free: Vec<usize> = (0..PLACES).collect();
    let mut all: Vec<Made> = Vec::new();
    for step in 0..operations {
        let choice = random.below(100);
        if all.is_empty() || (choice < 15 && all.len() < 10) {
            let (bytes, types) = ((1 + random.below(5)) * BLOCK, random.below(2) as u32);
            let handle = create(bytes, types).expect("cuMemCreate");
            all.push(Made { handle, bytes, held: true, value: None, places: Vec::new() });
            continue;
        }
        let which = random.below(all.len() as u64) as usize;
        let made = &mut all[which];
        match choice {
            0..35 => {
                if let Some(at) = free.pop() {
                    map(place(at), made.bytes, made.handle);
                    if random.below(4) == 0 {
                        assert_eq!(access(place(at), made.bytes, 1), CUresult::CUDA_SUCCESS);
                        assert_eq!(access(place(at), made.bytes, 3), CUresult::CUDA_SUCCESS);
                    }
                    made.places.push(at);
                }
            }
            35..50 => {
                if let Some(at) = made.places.pop() {
                    unmap(place(at), made.bytes);
                    free.push(at);
                }
            }
            50..70 => {
                if let Some(at) = made.places.first() {
                    store(&gpu, stream, place(*at), made.bytes, step);
                    made.value = Some(step);
                }
            }
            70..88 => {
                if let (Some(value), Some(at)) = (made.value, made.places.last()) {
                    assert_eq!(others(place(*at), made.bytes as usize, value), 0, "handle {which}");
                }
            }
            88..92 => {
                if let Some(at) = made.places.last() {
                    let mut again = 0;
                    let inside = (place(*at) + 5) as *mut std::ffi::c_void;
                    cu!(cuMemRetainAllocationHandle(&raw mut again, inside));
                    assert_eq!(again, made.handle, "it is the same");
                    if std::mem::replace(&mut made.held, true) {
                        cu!(cuMemRelease(again));
                    }
                }
            }
            _ => {
                if made.held {
                    cu!(cuMemRelease(made.handle));
                    made.held = false;
                }
            }
        }
        if !made.held && made.places.is_empty() {
            all.swap_remove(which);
        }
    }
    for made in all {
        if let (Some(value), Some(at)) = (made.value, made.places.first()) {
            assert_eq!(others(place(*at), made.bytes as usize, value), 0);
        }
        for at in made.places {
            unmap(place(at), made.bytes);
        }
        if made.held {
            cu!(cuMemRelease(made.handle));
        }
    }
    cu!(cuMemAddressFree(reserved, PLACES * LARGEST as usize));
    // What the engine is at just now comes free when it is done.
    let limit = Instant::now() + Duration::from_secs(10);
    while gpu::free_bytes() + (8 << 20) < before {
        assert!(Instant::now() < limit, "what was released is not free: {} of {before}", gpu::free_bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A segment that grows by 2 MiB and 20 MiB handles, shrinks from its end and grows again.
pub(super) fn segments() {
    const SEGMENT: u64 = 24 * BLOCK;
    let gpu = Gpu::open();
    let stream = stream();
    let start = reserve(SEGMENT);
    let mut random = Random::new(7);
    let mut parts: Vec<(u64, u64, u64)> = Vec::new();
    for round in 0..15 {
        let mut end: u64 = parts.iter().map(|(_, bytes, _)| bytes).sum();
        while random.below(4) != 0 {
            let bytes = if random.below(2) == 0 { BLOCK } else { 10 * BLOCK };
            if end + bytes > SEGMENT {
                break;
            }
            let handle = create(bytes, 1).expect("cuMemCreate");
            map(start + end, bytes, handle);
            store(&gpu, stream, start + end, bytes, round);
            parts.push((handle, bytes, round));
            end += bytes;
        }
        // All of it in one launch, across the seams.
        gpu.launch("nvshare_step", stream, &[start, end / 8, 1]);
        synchronize(stream);
        for (_, _, value) in &mut parts {
            *value += 1;
        }
        let mut at = start;
        for (_, bytes, value) in &parts {
            assert_eq!(others(at, *bytes as usize, *value), 0, "round {round} at {:#x}", at - start);
            at += bytes;
        }
        while random.below(3) != 0
            && let Some((handle, bytes, _)) = parts.pop()
        {
            at -= bytes;
            unmap(at, bytes);
            cu!(cuMemRelease(handle));
        }
    }
}

/// Memory that belongs to no context: those in which it was made and used come and go.
pub(super) fn contexts() {
    const BYTES: u64 = 4 * BLOCK;
    cu!(cuInit(0));
    let at = reserve(BYTES);
    let handle = create(BYTES, 0).expect("cuMemCreate");
    map(at, BYTES, handle);
    for round in 0..20 {
        let mut context = std::ptr::null_mut();
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let gpu = Gpu::load();
        let stream = stream();
        if round > 0 {
            assert_eq!(others(at, BYTES as usize, round), 0, "round {round}");
        }
        store(&gpu, stream, at, BYTES, round + 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(others(at, BYTES as usize, round + 1), 0, "round {round}");
        cu!(cuCtxDestroy_v2(context));
    }
    unmap(at, BYTES);
    cu!(cuMemRelease(handle));
}
