//! Whatever bytes arrive as a request are read or refused; nothing panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    podlink::rpc::read_anything(bytes);
});
