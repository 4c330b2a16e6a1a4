//! Programs that allocate in stream order.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use cudarc::driver::sys::{self, CUdeviceptr, CUmemoryPool, CUresult, CUstream};

use super::random::Random;
use crate::gpu::{self, Gpu, cu, others, stream, synchronize};

/// `CU_MEMPOOL_ATTR_*`: the release threshold; reserved and used now.
const THRESHOLD: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
const RESERVED: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
const USED: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;

/// The first device's pool from the start.
pub(crate) fn default() -> CUmemoryPool {
    let mut pool = std::ptr::null_mut();
    cu!(cuDeviceGetDefaultMemPool(&raw mut pool, 0));
    pool
}

/// A pool of the first device that reserves at most `most` bytes, if that is not zero.
fn made(most: usize) -> CUmemoryPool {
    // SAFETY: all zero is a valid value of this plain struct.
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.maxSize = most;
    let mut pool = std::ptr::null_mut();
    cu!(cuMemPoolCreate(&raw mut pool, &raw const properties));
    pool
}

fn keep(pool: CUmemoryPool, mut bytes: u64) {
    cu!(cuMemPoolSetAttribute(pool, THRESHOLD, (&raw mut bytes).cast()));
}

pub(crate) fn reserved(pool: CUmemoryPool) -> u64 {
    figure(pool, RESERVED)
}

pub(crate) fn used(pool: CUmemoryPool) -> u64 {
    figure(pool, USED)
}

fn figure(pool: CUmemoryPool, attribute: sys::CUmemPool_attribute) -> u64 {
    let mut bytes = 0_u64;
    cu!(cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()));
    bytes
}

pub(crate) fn try_take(pool: CUmemoryPool, bytes: u64, stream: CUstream) -> Result<CUdeviceptr, CUresult> {
    let mut at = 0;
    // SAFETY: `at` is where the answer goes.
    match unsafe { sys::cuMemAllocFromPoolAsync(&raw mut at, bytes as usize, pool, stream) } {
        CUresult::CUDA_SUCCESS => Ok(at),
        error => Err(error),
    }
}

fn take(pool: CUmemoryPool, bytes: u64, stream: CUstream) -> CUdeviceptr {
    try_take(pool, bytes, stream).unwrap_or_else(|error| {
        panic!(
            "{bytes} of a pool with {} of {} in use: {error:?}, {} free",
            used(pool),
            reserved(pool),
            gpu::free_bytes()
        )
    })
}

struct Piece {
    at: CUdeviceptr,
    bytes: u64,
    value: u64,
    stream: usize,
}

/// Random pieces of two pools in three streams and the default one: each is written in its stream, read there after more of everything
/// was queued behind, and freed there, in another stream behind an event, or by `cuMemFree`.
pub(super) fn random(seed: u64, operations: u64) {
    let gpu = Gpu::open();
    let streams = [stream(), stream(), stream(), std::ptr::null_mut()];
    let pools = [default(), made(0)];
    let mut event = std::ptr::null_mut();
    cu!(cuEventCreate(&raw mut event, 2));
    let mut random = Random::new(seed);
    keep(pools[1], 64 << 20);
    let mut live: Vec<Piece> = Vec::new();
    let (mut total, mut by_pool) = (0, [0, 0]);
    for step in 1..=operations {
        match random.below(100) {
            0..45 if total < 48 << 20 => {
                let bytes = match random.below(3) {
                    0 => 8 * (1 + random.below(500)),
                    1 => 8 << (10 + random.below(8)),
                    _ => 8 * (random.below(2 << 20) + 1),
                };
                let (which, pool) = (random.below(4) as usize, random.below(2) as usize);
                let at = take(pools[pool], bytes, streams[which]);
                gpu.launch("nvshare_store", streams[which], &[at, bytes / 8, step]);
                live.push(Piece { at, bytes, value: step, stream: which });
                total += bytes;
                by_pool[pool] += 1;
            }
            0..75 if !live.is_empty() => {
                let piece = live.swap_remove(random.below(live.len() as u64) as usize);
                total -= piece.bytes;
                let own = streams[piece.stream];
                match random.below(8) {
                    0 => {
                        synchronize(own);
                        assert_eq!(others(piece.at, piece.bytes as usize, piece.value), 0, "step {step}");
                        gpu::free(piece.at);
                    }
                    1 => {
                        let other = streams[random.below(4) as usize];
                        cu!(cuEventRecord(event, own));
                        cu!(cuStreamWaitEvent(other, event, 0));
                        gpu.launch("nvshare_step", other, &[piece.at, piece.bytes / 8, 1]);
                        cu!(cuMemFreeAsync(piece.at, other));
                    }
                    _ => {
                        // What is in flight still uses it.
                        gpu.launch("nvshare_step", own, &[piece.at, piece.bytes / 8, 1]);
                        cu!(cuMemFreeAsync(piece.at, own));
                    }
                }
            }
            0..90 if !live.is_empty() => {
                let which = random.below(live.len() as u64) as usize;
                let piece = &mut live[which];
                gpu.launch("nvshare_step", streams[piece.stream], &[piece.at, piece.bytes / 8, 1]);
                piece.value += 1;
                if random.below(3) == 0 {
                    synchronize(streams[piece.stream]);
                    assert_eq!(others(piece.at, piece.bytes as usize, piece.value), 0, "step {step}");
                }
            }
            0..94 => cu!(cuMemPoolTrimTo(pools[random.below(2) as usize], (random.below(64) << 20) as usize)),
            _ => synchronize(streams[random.below(4) as usize]),
        }
    }
    assert!(by_pool.iter().all(|count| *count > 0));
    for which in streams {
        synchronize(which);
    }
    for piece in &live {
        assert_eq!(others(piece.at, piece.bytes as usize, piece.value), 0);
    }
    assert_eq!(pools.iter().map(|pool| used(*pool)).sum::<u64>(), total);
    for piece in live {
        cu!(cuMemFreeAsync(piece.at, streams[0]));
    }
    synchronize(streams[0]);
    cu!(cuMemPoolDestroy(pools[1]));
    assert_eq!((used(pools[0]), reserved(pools[0])), (0, 0));
}

/// Pieces that outlive the contexts in which they were made, and pools that are destroyed with a piece in use.
pub(super) fn contexts() {
    const BYTES: u64 = 3 << 20;
    cu!(cuInit(0));
    let mut at = 0;
    for round in 0..12 {
        let mut context = std::ptr::null_mut();
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let gpu = Gpu::load();
        let stream = stream();
        if round > 0 {
            assert_eq!(others(at, BYTES as usize, round), 0, "round {round}");
            if round % 3 == 0 {
                cu!(cuMemFreeAsync(at, stream));
                at = 0;
            }
        }
        if at == 0 {
            let pool = made(0);
            at = take(pool, BYTES, stream);
            cu!(cuMemPoolDestroy(pool));
            assert_eq!(try_take(pool, BYTES, stream), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
        }
        gpu.launch("nvshare_store", stream, &[at, BYTES / 8, round + 1]);
        synchronize(stream);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(others(at, BYTES as usize, round + 1), 0, "round {round}");
        cu!(cuCtxDestroy_v2(context));
    }
}

/// What a pool says and refuses, as an H200 does (`docs/gpu/pools.py`); the same without the library.
pub(super) fn answers() {
    const MIB: u64 = 1 << 20;
    let gpu = Gpu::open();
    let (one, two) = (stream(), stream());
    let pool = made(64 << 20);
    let levels = || (reserved(pool) / MIB, used(pool));
    let first = take(pool, 5000, one);
    assert_eq!(levels(), (32, 5000));
    let second = take(pool, 40 * MIB + 1, one);
    assert_eq!((second - first, levels()), (5120, (64, 40 * MIB + 5001)));
    assert_eq!(try_take(pool, 30 * MIB, one), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY), "it may hold 64 MiB");
    assert_eq!(attribute(second + 7, 1), Ok(0), "it belongs to no context");
    assert_eq!(attribute(second + 7, 17), Ok(pool.expose_provenance() as u64));
    assert_eq!(attribute(second + 7, 11), Ok(second));
    assert_eq!(attribute(second + 7, 12), Ok(40 * MIB + 1));
    assert_eq!((attribute(second, 18), attribute(second, 19)), (Ok(32 * MIB), Ok(first)));
    assert_eq!((attribute(second, 6), attribute(second, 10), attribute(second, 15)), (Ok(0), Ok(0), Ok(0)));
    assert_eq!(attribute(first, 20), attribute(second, 20), "a pool is one block");
    assert_ne!(attribute(first, 7), attribute(second, 7));
    // A stream has again what was freed in it, another waits on the device for it where there is no more.
    gpu.launch("nvshare_spin", one, &[100_000_000]);
    cu!(cuMemFreeAsync(second, one));
    assert_eq!(attribute(second, 2), Err(CUresult::CUDA_ERROR_INVALID_VALUE), "it is nobody's at once");
    let again = take(pool, 20 * MIB, one);
    assert_eq!(again, second);
    assert_eq!(refused(second + 512, one), CUresult::CUDA_ERROR_INVALID_VALUE);
    cu!(cuMemFreeAsync(again, one));
    assert_eq!(refused(again, two), CUresult::CUDA_ERROR_INVALID_VALUE);
    let elsewhere = take(pool, 40 * MIB, two);
    assert_eq!((elsewhere, levels().0), (second, 64));
    // SAFETY: a stream that lives.
    let asked = unsafe { sys::cuStreamQuery(two) };
    // A swap lets it run to its end.
    if std::env::var_os("NVSHARE_DEBUG_SWAP_EVERY").is_none() {
        assert_eq!(asked, CUresult::CUDA_ERROR_NOT_READY, "the spinning kernel is before it");
    }
    synchronize(two);
    gpu::free(elsewhere);
    cu!(cuMemFreeAsync(first, one));
    assert_eq!(levels(), (64, 0), "nothing has been synchronised since");
    synchronize(one);
    assert_eq!(levels(), (0, 0));
    assert_eq!(refused(first, one), CUresult::CUDA_ERROR_INVALID_VALUE);
}

/// What could not be had leaves nothing behind; and what a synchronisation made due goes, whatever else is asked for.
pub(super) fn too_much() {
    const MIB: u64 = 1 << 20;
    let _gpu = Gpu::open();
    let (one, pool) = (stream(), default());
    gpu::alloc(64 << 20);
    let free = gpu::free_bytes();
    for bytes in [free as u64 + 32 * MIB, u64::MAX - 5] {
        assert_eq!(try_take(pool, bytes, one), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert_eq!((reserved(pool), used(pool), gpu::free_bytes()), (0, 0, free));
    }
    let at = take(pool, 40 * MIB, one);
    cu!(cuMemFreeAsync(at, one));
    synchronize(one);
    cu!(cuMemPoolTrimTo(pool, 1 << 30));
    assert_eq!(reserved(pool), 0);
}

/// What a stream of another context freed is had behind its work, in a default stream too.
pub(super) fn behind_another_context() {
    const BYTES: u64 = 20 << 20;
    let gpu = Gpu::open();
    let (pool, large, primary) = (made(32 << 20), made(0), super::current());
    let mut context = std::ptr::null_mut();
    cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
    let there = Gpu::load();
    let one = stream();
    let (at, besides) = (take(pool, BYTES, one), take(large, BYTES, one));
    there.launch("nvshare_spin", one, &[300_000_000]);
    there.launch("nvshare_store", one, &[at, BYTES / 8, 7]);
    cu!(cuMemFreeAsync(at, one));
    cu!(cuMemFreeAsync(besides, one));
    super::make_current(primary);
    let legacy = std::ptr::without_provenance_mut(1);
    // That stream is asked about, and busy; then once more.
    take(large, BYTES, legacy);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(take(pool, BYTES, legacy), at);
    gpu.launch("nvshare_store", legacy, &[at, BYTES / 8, 8]);
    synchronize(legacy);
    synchronize(one);
    assert_eq!(others(at, BYTES as usize, 8), 0, "it was written last");
    // Who looks after what others freed still does.
    cu!(cuMemFreeAsync(at, legacy));
    assert_eq!(take(pool, BYTES, stream()), at);
}

/// The work of a green context's own default stream goes on when that context is gone: of a pool, or plain memory.
pub(super) fn green(is_plain: bool) {
    const BYTES: u64 = 1 << 20;
    let gpu = Gpu::open();
    let (one, pool, primary) = (stream(), made(0), super::current());
    let mut green = std::ptr::null_mut();
    let mut context = std::ptr::null_mut();
    // SAFETY: all zero is a valid value of these plain structs.
    let [mut whole, mut part, mut rest]: [sys::CUdevResource; 3] = unsafe { std::mem::zeroed() };
    let (mut parts, mut description) = (1, std::ptr::null_mut());
    cu!(cuDeviceGetDevResource(0, &raw mut whole, sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM));
    cu!(cuDevSmResourceSplitByCount(&raw mut part, &raw mut parts, &raw const whole, &raw mut rest, 0, 16));
    cu!(cuDevResourceGenerateDesc(&raw mut description, &raw mut part, 1));
    cu!(cuGreenCtxCreate(&raw mut green, description, 0, 1));
    cu!(cuCtxFromGreenCtx(&raw mut context, green));
    cu!(cuCtxSetCurrent(context));
    let legacy = std::ptr::without_provenance_mut(1);
    let taken = |stream| if is_plain { gpu::alloc(BYTES as usize) } else { take(pool, BYTES, stream) };
    let at = taken(legacy);
    gpu.launch("nvshare_spin", legacy, &[500_000_000]);
    gpu.launch("nvshare_store", legacy, &[at, BYTES / 8, 7]);
    cu!(cuMemFreeAsync(at, legacy));
    super::make_current(primary);
    cu!(cuGreenCtxDestroy(green));
    let other = taken(one);
    gpu.launch("nvshare_store", one, &[other, BYTES / 8, 8]);
    synchronize(one);
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert_eq!(others(other, BYTES as usize, 8), 0);
    assert_ne!(at, other, "it was still written");
}

fn refused(at: CUdeviceptr, stream: CUstream) -> CUresult {
    // SAFETY: the driver judges it.
    unsafe { sys::cuMemFreeAsync(at, stream) }
}

/// An attribute of an address, by its number.
fn attribute(at: CUdeviceptr, number: u32) -> Result<u64, CUresult> {
    let mut value = 0_u64;
    // SAFETY: no attribute is wider; the numbers are those of the header.
    let asked = unsafe {
        sys::cuPointerGetAttribute(
            (&raw mut value).cast(),
            std::mem::transmute::<u32, sys::CUpointer_attribute>(number),
            at,
        )
    };
    if asked == CUresult::CUDA_SUCCESS { Ok(value) } else { Err(asked) }
}
