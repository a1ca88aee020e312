//! A hash that every build of regrow computes alike; std's hashers don't promise that.

/// The 64-bit FNV-1a hash of the bytes.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
