//! libFuzzer's way into `session_tests::targets::udp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| session_tests::targets::udp(bytes));
