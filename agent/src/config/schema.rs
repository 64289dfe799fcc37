//! The JSON Schema of the config file, from the same structs that read it.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::File;

/// The schema, for editors that check a file while it is written.
pub(crate) fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<File>().to_value()
}
