//! src/proto/ is what proto/podlink/v1/route.proto says, byte for byte.
//!
//! After a change of the .proto file: `PODLINK_GENERATE=1 cargo test --no-default-features --test wire`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

use std::fs;
use std::path::{Path, PathBuf};

use prost_types::FileDescriptorSet;

const PROTO: &str = "podlink/v1/route.proto";
const CODE: &str = "podlink.v1.rs";
const DESCRIPTORS: &str = "podlink.v1.bin";

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn descriptors() -> FileDescriptorSet {
    protox::compile([PROTO], [project().join("proto")]).unwrap()
}

fn generate(into: &Path) {
    let descriptors = descriptors();
    fs::write(
        into.join(DESCRIPTORS),
        prost::Message::encode_to_vec(&descriptors),
    )
    .unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        .btree_map(".")
        .codec_path("crate::proto::Codec")
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)
        .unwrap();
}

#[test]
fn generated_code_is_fresh() {
    let committed = project().join("src/proto");
    if std::env::var_os("PODLINK_GENERATE").is_some() {
        generate(&committed);
    }
    let fresh = std::env::temp_dir().join(format!("podlink-generated-{}", std::process::id()));
    fs::create_dir_all(&fresh).unwrap();
    generate(&fresh);
    for file in [CODE, DESCRIPTORS] {
        let same = fs::read(committed.join(file)).ok() == fs::read(fresh.join(file)).ok();
        assert!(same, "src/proto/{file} is not what {PROTO} says");
    }
    fs::remove_dir_all(&fresh).unwrap();
}

#[test]
fn every_message_field_and_method_is_documented() {
    let set = descriptors();
    let file = &set.file[0];
    let documented: std::collections::HashSet<Vec<i32>> = file
        .source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .filter(|location| !location.leading_comments().trim().is_empty())
        .map(|location| location.path.clone())
        .collect();
    let mut missing = Vec::new();
    for (at, message) in file.message_type.iter().enumerate() {
        let at = i32::try_from(at).unwrap();
        if !documented.contains(&vec![4, at]) {
            missing.push(message.name().to_owned());
        }
        for (field_at, field) in message.field.iter().enumerate() {
            let field_at = i32::try_from(field_at).unwrap();
            if !documented.contains(&vec![4, at, 2, field_at]) {
                missing.push(format!("{}.{}", message.name(), field.name()));
            }
        }
    }
    for (at, method) in file.service[0].method.iter().enumerate() {
        if !documented.contains(&vec![6, 0, 2, i32::try_from(at).unwrap()]) {
            missing.push(method.name().to_owned());
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

/// The names that the proto linters ask for: CamelCase messages, snake_case fields, enum values
/// with their enum's name in front, a request and a response for each method alone.
#[test]
fn names_are_as_the_linters_of_proto_want_them() {
    let set = descriptors();
    let file = &set.file[0];
    assert_eq!(file.package(), "podlink.v1");
    for method in &file.service[0].method {
        assert_eq!(
            method.input_type(),
            format!(".podlink.v1.{}Request", method.name())
        );
        assert_eq!(
            method.output_type(),
            format!(".podlink.v1.{}Response", method.name())
        );
    }
    let snake = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    for message in &file.message_type {
        assert!(message.name().starts_with(|c: char| c.is_ascii_uppercase()));
        for field in &message.field {
            assert!(snake(field.name()), "{}.{}", message.name(), field.name());
        }
    }
    assert!(
        file.enum_type[0]
            .value
            .iter()
            .all(|v| v.name().starts_with("ROUTING_STATE_"))
    );
}
