//! What is read on several threads is what is read on one, to the byte.

use std::sync::Arc;

use super::*;
use crate::render;

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME, namespace: shop}
spec:
  targetRefs:
  - {kind: Service, group: \"\", name: cart}
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/mail/sa/a]}
    to:
    - operation:
        methods: [\"GET\"] # reads
        paths:
        - /v1/é*
    when:
    - key: request.headers[x]
      values: [a, 'b: c', |-]
";

/// Documents as users write them, right and wrong. What ends a document badly may swallow the next.
const DOCUMENTS: &[&str] = &[
    "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n",
    "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec:\n  ports:\n  - port: 80\n",
    "",
    "# nothing but a comment\n",
    "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: ä\n  namespace: shop\n  annotations:\n    text: |\n      a\n\n      b\n    empty:\n",
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: in-list}\n- kind: List\n",
    "apiVersion: v1\nkind: Secret\nmetadata: {name: ignored}\n",
    "a: &x 1\nb: *x\n",
    "b: *x\n",
    "a: 1\na: 2\n",
    "a: [1, 2\n",
    "a: \"open\n",
    "a: 'open\n\n",
    "|\n  text\n",
    "|\ntext\n",
    ">-\ntext\n\n",
    "text\n",
    "{a: 1\n",
    "a: 1\n b: 2\n",
    "\ta: 1\n",
    "a: |\n  kept\n\n",
    "a: |+\n  kept\n\n\n",
    "? a\n: b\n",
    "!!str a\n",
    "a: !secret b\n",
    "...\n",
    "a: 1\n...\n# between\n",
    "a: 1\n...\nb: 2\n",
    "%YAML 1.2\n",
    "a: 1\n...\n%TAG ! tag:x,2000:\n",
    "a: \u{1}\n",
    "a: 1\r\nb: 2\r\n",
    "a: 1\r...\r%YAML 1.2\r",
    "- 1\n- 2\n",
    "null\n",
    "~\n",
    "12\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad}\nspec: {rules: 1}\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd}\nspec:\n  action: DENY\n  unknown: 1\n  rules:\n  - from:\n    - source: {principals: [], namespaces: [\"\"]}\n    to:\n    when:\n    - {key: source.ip, values: [x]}\n",
];

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound
    }
}

fn loaded(files: &[(String, String)], sharing: Sharing) -> Loaded {
    let mut loaded = Loaded::default();
    let sources = files.iter().map(|(name, text)| source(name, text.clone().into_bytes()));
    loaded.read(sources.collect(), Some(sharing));
    loaded
}

/// Reads the files on one thread and on several.
fn assert_same(files: &[(String, String)], part_sizes: &[usize]) -> Loaded {
    let alone = loaded(files, Sharing { threads: 1, part_bytes: 1 });
    for &part_bytes in part_sizes {
        let shared = loaded(files, Sharing { threads: 3, part_bytes });
        assert!(shared.diagnostics == alone.diagnostics, "{}", differing(&shared, &alone, files));
        for (shared, alone) in [(&shared.objects, &alone.objects), (&shared.malformed, &alone.malformed)] {
            assert_eq!(shared.len(), alone.len(), "{files:?}");
            for (shared, alone) in shared.iter().zip(alone) {
                assert_eq!(shared.resource, alone.resource, "{files:?}");
                assert_eq!(shared.rejection, alone.rejection, "{files:?}");
                assert!(shared.origin.is_written_as(&alone.origin), "{files:?}");
            }
        }
    }
    alone
}

fn differing(shared: &Loaded, alone: &Loaded, files: &[(String, String)]) -> String {
    let [shared, alone] = [shared, alone].map(|loaded| render(&loaded.diagnostics, false));
    format!("{files:?}\non threads:\n{shared}\nalone:\n{alone}")
}

fn file(text: String) -> (String, String) {
    ("a.yaml".to_owned(), text)
}

#[test]
fn each_pair_of_documents_reads_the_same_on_threads() {
    for first in DOCUMENTS {
        for second in DOCUMENTS {
            assert_same(&[file(format!("{first}---\n{second}--- # end\nlast: 1"))], &[1]);
        }
    }
}

#[test]
fn mixed_folders_read_the_same_on_threads() {
    let mut numbers = Numbers(1);
    for _ in 0..100 {
        let files = (0..1 + numbers.below(3)).map(|index| {
            let mut text = String::new();
            for _ in 0..numbers.below(8) {
                // Mostly right ones: after an error the rest of a file isn't read.
                let document = if numbers.below(3) > 0 {
                    POLICY.replace("NAME", &format!("p-{}", numbers.below(4)))
                } else {
                    DOCUMENTS[numbers.below(DOCUMENTS.len())].to_owned()
                };
                text.push_str(&document);
                text.push_str(["---\n", "--- \n", "---\r\n", "---\t# x\n", "\n---\n"][numbers.below(5)]);
            }
            // Cuts through documents, but not through characters.
            text.truncate(text.floor_char_boundary(text.len() - numbers.below(1 + text.len() / 8)));
            (format!("{index}.yaml"), text)
        });
        assert_same(&files.collect::<Vec<_>>(), &[1, 300]);
    }
}

#[test]
fn many_good_policies_read_the_same_on_threads() {
    let texts = (0..3).map(|file| {
        let policies = (0..60).map(|index| POLICY.replace("NAME", &format!("p-{file}-{index}")));
        (format!("{file}.yaml"), policies.collect::<Vec<_>>().join("---\n"))
    });
    let loaded = assert_same(&texts.collect::<Vec<_>>(), &[4096]);
    assert_eq!(loaded.objects.len(), 180);
    let last = loaded.objects.last().map(|object| Arc::clone(&object.origin)).expect("there are objects");
    let place = last.place("spec.rules[0].to[0].operation.paths[0]").expect("it is written");
    assert_eq!((place.line, place.column), (59 * 19 + 15, 11));
    assert_eq!(&place.source.text()[place.span], "/v1/é*");
}

#[test]
fn limits_of_a_file_hold_over_its_parts() {
    let documents = file("---\n".repeat(limits::MAX_DOCUMENTS + 2));
    let list = format!("[{}]\n---\n", "1, ".repeat(limits::MAX_NODES / 3));
    let nodes = file(list.repeat(4));
    let unnamed = file("---\nkind: Pod\n".repeat(limits::MAX_DIAGNOSTICS + 5));
    for (file, code) in [(documents, codes::TOO_LARGE), (nodes, codes::TOO_LARGE), (unnamed, codes::NOT_AN_OBJECT)] {
        let (alone, shared) = (Sharing { threads: 1, part_bytes: 1 }, Sharing { threads: 3, part_bytes: 4096 });
        let (alone, shared) = (loaded(std::slice::from_ref(&file), alone), loaded(&[file], shared));
        assert_eq!(alone.diagnostics, shared.diagnostics);
        assert!(alone.diagnostics.iter().any(|diagnostic| diagnostic.code == code), "{code}");
    }
}

#[test]
fn one_byte_a_character_reads_as_others_do() {
    for document in DOCUMENTS.iter().chain([&POLICY]).filter(|document| document.is_ascii()) {
        // A comment with a letter of two bytes takes the other input, and moves nothing before it.
        let alone = Sharing { threads: 1, part_bytes: 1 };
        let ascii = loaded(&[file(format!("{document}\n# e"))], alone);
        let other = loaded(&[file(format!("{document}\n# é"))], alone);
        let seen = |loaded: &Loaded| {
            let diagnostics: Vec<_> = loaded.diagnostics.iter().map(ToString::to_string).collect();
            let resources: Vec<_> = loaded.objects.iter().map(|object| object.resource.clone()).collect();
            (diagnostics, resources)
        };
        assert_eq!(seen(&ascii), seen(&other), "{document}");
    }
}
