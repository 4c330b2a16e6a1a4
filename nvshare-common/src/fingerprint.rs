//! The fingerprint of a block: a keyed 128-bit hash and the OR of its words. The swap engine's kernel ([`PTX`]) and
//! [`fingerprint`] compute the same function; a block whose fingerprint did not change is not copied again.
//!
//! # The function
//!
//! With `p = 2^61 - 1`, a block of `n` 64-bit little-endian words with low halves `a_i` and high halves `b_i`, and a key
//! of two points `(r, k)`, uniform in `[0, p)`, each of the two hashes is
//!
//! ```text
//! H(r, k) = sum over i in 0..n of (a_i + k * b_i) * r^i   (mod p)
//! ```
//!
//! # The bound
//!
//! For two *different* blocks of `n` words, chosen without knowledge of the key, both hashes agree with a probability of
//! at most `(n / p)^2`; for a block of 2 MiB, `n = 2^18`, that is less than `2^-85.99`.
//!
//! Proof. Let `d_i = a_i - a'_i` and `e_i = b_i - b'_i`; all are less than `2^32 < p` in magnitude, so a difference that
//! is not zero is not zero modulo `p` either, and some index `j` has `(d_j, e_j) != (0, 0)`. The hashes of one point agree
//! exactly if `D(r) = sum (d_i + k * e_i) * r^i` is zero. The coefficient `d_j + k * e_j` is zero for at most one `k` of
//! `p` (if `e_j = 0` it is `d_j`, never zero). For every other `k`, `D` is a non-zero polynomial over a field, of degree at
//! most `n - 1`, and has at most `n - 1` roots. Together: at most `1/p + (n - 1)/p = n/p`. The two points are independent.
//!
//! That a block is zero is decided by the OR, which is exact, never by its hash.

/// The Mersenne prime `2^61 - 1`.
pub const PRIME: u64 = (1 << 61) - 1;

/// The same function for a GPU: entry [`ENTRY`], one CTA of a power of two of at most 1024 threads for each block.
/// Parameters (all 64 bits): `base`, `blocks`, `block_bytes` (a multiple of 16), the address of a key ([`Key::words`]), the
/// address of `blocks` [`Fingerprint`]s. Base and block size must keep every block 16-byte aligned.
#[cfg(feature = "std")]
pub const PTX: &str = include_str!("fingerprint.ptx");

/// The kernel's name in [`PTX`].
pub const ENTRY: &str = "nvshare_fingerprint";

/// How many words of a block are taken per step: enough that the reduction does not show, few enough that the powers
/// stay in the first-level cache.
const STRIDE: usize = 64;
/// Powers are cut into limbs of this many bits: a step's 128 products of a limb and half a word add up to less than 2^60.
const LIMB: u32 = 21;

/// Two points `(r, k)`. Must be random, and never leave the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    points: [(u64, u64); 2],
}

/// What identifies the contents of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fingerprint {
    /// The keyed hashes, each less than [`PRIME`].
    pub hash: [u64; 2],
    /// The OR of all words: zero exactly if the block is.
    pub any: u64,
}

impl Fingerprint {
    /// Whether every byte of the block is zero.
    pub const fn is_zero(&self) -> bool {
        self.any == 0
    }
}

impl Key {
    /// A key from four uniformly random words; `None` (once in `2^59`) if they do not make one: draw again.
    pub fn from_random(words: [u64; 4]) -> Option<Key> {
        Key::from_words(words.map(|word| word & PRIME))
    }

    /// The key that [`Key::words`] came from; `None` if a word is not less than [`PRIME`].
    pub fn from_words(words: [u64; 4]) -> Option<Key> {
        let [r0, k0, r1, k1] = words;
        words.iter().all(|word| *word < PRIME).then_some(Key { points: [(r0, k0), (r1, k1)] })
    }

    /// The key as the kernel reads it: `r, k` of the first point, then of the second.
    pub const fn words(&self) -> [u64; 4] {
        let [(r0, k0), (r1, k1)] = self.points;
        [r0, k0, r1, k1]
    }
}

/// The fingerprint of `block`. A length that is no multiple of eight is filled up with zeros; blocks of different
/// lengths are not meant to be compared.
pub fn fingerprint(key: &Key, block: &[u8]) -> Fingerprint {
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(
            unsafe_code,
            reason = "who calls what is compiled for a processor must know that it is that one"
        )]
        // SAFETY: the processor has just been asked whether it has these instructions.
        return unsafe { with_avx2(key, block) };
    }
    all_steps(key, block)
}

/// The same code, compiled for wider registers.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
#[target_feature(enable = "avx2")]
fn with_avx2(key: &Key, block: &[u8]) -> Fingerprint {
    all_steps(key, block)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled with the caller's instructions")]
fn all_steps(key: &Key, block: &[u8]) -> Fingerprint {
    let powers = key.points.map(Powers::new);
    let (chunks, rest) = block.as_chunks::<{ STRIDE * 8 }>();
    let mut any = 0;
    let mut hash = [0; 2];
    if !rest.is_empty() {
        let mut last = [0; STRIDE * 8];
        last[..rest.len()].copy_from_slice(rest);
        step(&powers, &last, &mut hash, &mut any);
    }
    // Horner's rule from the last word to the first.
    for chunk in chunks.iter().rev() {
        step(&powers, chunk, &mut hash, &mut any);
    }
    Fingerprint { hash: hash.map(canonical), any }
}

/// `r^i` and `k * r^i` for the words of one step, in limbs, and `r` to the length of a step.
struct Powers {
    low: [[u32; STRIDE]; 3],
    high: [[u32; STRIDE]; 3],
    step: u64,
}

impl Powers {
    fn new((r, k): (u64, u64)) -> Powers {
        let mut powers = Powers { low: [[0; STRIDE]; 3], high: [[0; STRIDE]; 3], step: 0 };
        let mut power = 1;
        for index in 0..STRIDE {
            let twisted = canonical(reduce(u128::from(k) * u128::from(power)));
            for limb in 0..3 {
                let part = |value: u64| (value >> (LIMB * limb as u32)) as u32 & ((1 << LIMB) - 1);
                powers.low[limb][index] = part(power);
                powers.high[limb][index] = part(twisted);
            }
            power = canonical(reduce(u128::from(r) * u128::from(power)));
        }
        powers.step = power;
        powers
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled with the caller's instructions")]
fn step(powers: &[Powers; 2], chunk: &[u8; STRIDE * 8], hash: &mut [u64; 2], any: &mut u64) {
    let mut low = [0_u32; STRIDE];
    let mut high = [0_u32; STRIDE];
    let mut seen = 0;
    for ((word, low), high) in chunk.as_chunks::<8>().0.iter().zip(&mut low).zip(&mut high) {
        let word = u64::from_le_bytes(*word);
        seen |= word;
        (*low, *high) = (word as u32, (word >> 32) as u32);
    }
    *any |= seen;
    for (powers, hash) in powers.iter().zip(hash) {
        // Loops that a compiler turns into vector instructions.
        let sum = |limb: usize| u128::from(dot(&low, &powers.low[limb]) + dot(&high, &powers.high[limb]));
        // Below 2^62 * 2^61 + 2^60 * (1 + 2^21 + 2^42) < 2^124, as `reduce` asks.
        let carried = u128::from(*hash) * u128::from(powers.step);
        *hash = reduce(carried + sum(0) + (sum(1) << LIMB) + (sum(2) << (2 * LIMB)));
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled with the caller's instructions")]
fn dot(halves: &[u32; STRIDE], limbs: &[u32; STRIDE]) -> u64 {
    halves.iter().zip(limbs).map(|(half, limb)| u64::from(*half) * u64::from(*limb)).sum()
}

/// A number below 2^61 + 8 that is congruent to `sum`, which must be below 2^124.
#[inline]
fn reduce(sum: u128) -> u64 {
    debug_assert!(sum < 1 << 124);
    let folded = (sum as u64 & PRIME) + (sum >> 61) as u64;
    (folded & PRIME) + (folded >> 61)
}

/// The representative below [`PRIME`].
#[inline]
fn canonical(value: u64) -> u64 {
    let folded = (value & PRIME) + (value >> 61);
    if folded >= PRIME { folded - PRIME } else { folded }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Key {
        Key::from_random([0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978, 3]).unwrap()
    }

    /// The formula of the module's documentation, word by word.
    fn plain(key: &Key, block: &[u8]) -> Fingerprint {
        let prime = u128::from(PRIME);
        let hash = key.points.map(|(r, k)| {
            let mut power = 1;
            let mut sum = 0;
            for word in block.chunks_exact(8) {
                let word = u64::from_le_bytes(word.try_into().unwrap());
                let value = (u128::from(word as u32) + u128::from(k) * u128::from(word >> 32)) % prime;
                sum = (sum + value * power) % prime;
                power = power * u128::from(r) % prime;
            }
            sum as u64
        });
        let any =
            block.chunks_exact(8).fold(0, |any, word| any | u64::from_le_bytes(word.try_into().unwrap()));
        Fingerprint { hash, any }
    }

    #[test]
    fn the_largest_words_under_the_largest_key_do_not_overflow() {
        let key = Key::from_words([PRIME - 1; 4]).unwrap();
        let block = vec![0xff; if cfg!(miri) { 1 << 10 } else { 1 << 16 }];
        assert_eq!(fingerprint(&key, &block), plain(&key, &block));
        assert_eq!(all_steps(&key, &block), plain(&key, &block), "without vector instructions");
    }

    #[test]
    fn only_a_block_of_zeros_is_zero() {
        let mut block = vec![0; 4096];
        assert!(fingerprint(&key(), &block).is_zero());
        block[4095] = 1;
        assert!(!fingerprint(&key(), &block).is_zero());
    }

    #[test]
    fn a_key_word_that_is_no_residue_is_refused() {
        assert!(Key::from_words([0, 1, PRIME, 2]).is_none());
        assert!(Key::from_random([u64::MAX, 1, 2, 3]).is_none());
        let key = key();
        assert!(Key::from_words(key.words()) == Some(key));
    }

    #[test]
    fn moving_a_word_changes_the_hash() {
        let mut block = vec![0; 1024];
        block[0] = 7;
        let first = fingerprint(&key(), &block);
        block.swap(0, 8);
        let second = fingerprint(&key(), &block);
        block.swap(8, 12);
        let third = fingerprint(&key(), &block);
        assert!(
            first.hash[0] != second.hash[0]
                && second.hash[0] != third.hash[0]
                && first.hash[1] != third.hash[1]
        );
        assert!(first.any == second.any && first.any != third.any);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_fast_function_is_the_formula(words in any::<[u64; 4]>(), block in proptest::collection::vec(any::<u64>(), 0..100)) {
            let Some(key) = Key::from_random(words) else { return Ok(()) };
            let bytes: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(fingerprint(&key, &bytes), plain(&key, &bytes));
        }

        #[test]
        fn any_changed_bit_changes_both_hashes(block in proptest::collection::vec(any::<u64>(), 1..64), at in any::<usize>()) {
            let mut bytes: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
            let before = fingerprint(&key(), &bytes);
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let after = fingerprint(&key(), &bytes);
            prop_assert!(before.hash[0] != after.hash[0] && before.hash[1] != after.hash[1]);
        }
    }
}
