#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uniroute_agent::try_captured(data));
