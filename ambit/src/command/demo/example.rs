//! The example's files, carried in the binary so that the demo needs nothing beside it.

use std::{fs, path::PathBuf};

use crate::command::Failure;

const FILES: &[(&str, &str)] = &[
    ("complete-example.yaml", include_str!("../../../../examples/mlflow/complete-example.yaml")),
    ("multiple-rules.yaml", include_str!("../../../../examples/mlflow/multiple-rules.yaml")),
    ("mesh.yaml", include_str!("../../../../examples/mlflow/mesh.yaml")),
    ("server.yaml", include_str!("../../../../examples/mlflow/server.yaml")),
];

/// The file that holds the policy which one check edits.
const POLICY: &str = "complete-example.yaml";

/// A folder with the example, removed at the end.
#[derive(Debug)]
pub struct Example {
    folder: PathBuf,
}

// === impl Example ===

impl Example {
    /// Writes the files to a new folder that only this user can enter.
    pub fn write() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = std::env::temp_dir().join(format!("ambit-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| Failure::new(format!("can't make `{}`: {error}", folder.display())))?;
        let example = Self { folder };
        let resources = example.resources();
        fs::create_dir(&resources)
            .map_err(|error| Failure::new(format!("can't make `{}`: {error}", resources.display())))?;
        for (name, text) in FILES {
            example.replace(name, text)?;
        }
        Ok(example)
    }

    /// The folder to give to `ambit up -f`.
    pub fn resources(&self) -> PathBuf {
        self.folder.join("resources")
    }

    /// A folder for the mesh's own state and sockets.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where the access log goes.
    pub fn access_log(&self) -> PathBuf {
        self.folder.join("access.jsonl")
    }

    /// Lets otel-collector `POST /v2` besides `/v1/traces`.
    pub fn allow_v2(&self) -> Result<(), Failure> {
        let text = FILES.iter().find(|(name, _)| *name == POLICY).map_or("", |(_, text)| text);
        let edited = text.replace(r#"paths: ["/v1/traces"]"#, r#"paths: ["/v1/traces", "/v2"]"#);
        if edited == text {
            return Err(Failure::new(format!("`{POLICY}` no longer holds the path that this check edits")));
        }
        self.replace(POLICY, &edited)
    }

    /// Replaces a file in one step, as an editor does.
    fn replace(&self, name: &str, text: &str) -> Result<(), Failure> {
        let (next, path) = (self.folder.join(name), self.resources().join(name));
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|error| Failure::new(format!("can't write `{}`: {error}", path.display())))
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // What can't be removed stays in the temporary folder; there is nobody left to tell.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
