//! Compiles the `.proto` files without an installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=agent.proto");
    let descriptors = protox::compile(["agent.proto"], ["."])?;
    prost_build::Config::new()
        .bytes(["."])
        // They hold secrets: see src/redacted.rs.
        .skip_debug(["uniroute.v1.BasicUser", "uniroute.v1.Webhook"])
        .compile_fds(descriptors)?;
    Ok(())
}
