#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uniroute_fuzz::proxy_protocol(data));
