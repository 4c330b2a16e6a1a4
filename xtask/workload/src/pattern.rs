//! The pattern that fills the buffers, as the kernels compute it: a word tells where it belongs.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Word `n` of the pattern of `seed`.
pub(crate) const fn mix(seed: u64, n: u64) -> u64 {
    let mut z = (seed ^ n.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_splitmix64() {
        // The first outputs of the reference implementation for state 1234567.
        assert_eq!(mix(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(mix(0, 0), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn words_differ_by_place_and_by_seed() {
        assert_ne!(mix(1, 0), mix(1, 1));
        assert_ne!(mix(1, 0), mix(2, 0));
    }
}
