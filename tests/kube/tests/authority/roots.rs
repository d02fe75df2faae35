//! 6.4: the root in its Secret, from one to the next, and an operator's CA in a folder.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_control_plane::authority::{Leadership, LeadershipSettings, RootSecret, RootSettings, Roots};
use ambit_identity::{Ca, Clock, SystemClock, limits::ROOT_TTL};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, eventually};

const DAY_S: u64 = 24 * 3600;

/// The system's clocks, with the time since boot moved on by hand.
#[derive(Debug, Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn since_boot(&self) -> Option<Duration> {
        let system = SystemClock.since_boot()?;
        Some(system + Duration::from_secs(self.0.load(Ordering::SeqCst)))
    }
}

/// A replica whose keeping ends when it is dropped.
pub struct Replica {
    pub ca: Arc<Ca>,
    pub crl: watch::Receiver<Option<Arc<str>>>,
    pub problem: watch::Receiver<Option<String>>,
    keeping: JoinHandle<()>,
}

impl Replica {
    async fn start(client: &Client, settings: RootSettings, clock: Arc<dyn Clock>, leadership: Leadership) -> Self {
        let roots = Roots::open(client.clone(), settings, clock).await.expect("a root");
        let (ca, crl, problem) = (Arc::clone(roots.ca()), roots.crl(), roots.problem());
        Self { ca, crl, problem, keeping: tokio::spawn(roots.keep(leadership)) }
    }

    fn roots(&self) -> usize {
        self.ca.signer().roots().len()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

fn settings(namespace: &str, folder: &Path) -> RootSettings {
    RootSettings {
        folder: folder.to_owned(),
        check_interval: Duration::from_millis(100),
        ..RootSettings::new(namespace, "cluster.local")
    }
}

/// A leadership of its own Lease, with short times.
pub fn leadership(client: &Client, namespace: &str, identity: &str, stop: &CancellationToken) -> Leadership {
    let settings = LeadershipSettings {
        duration: Duration::from_secs(5),
        renew_within: Duration::from_secs(4),
        retry: Duration::from_millis(200),
        ..LeadershipSettings::new(namespace, "ambit-control-plane-leader", identity)
    };
    Leadership::start(client.clone(), settings, Arc::new(SystemClock), stop.clone()).0
}

pub async fn replicas_share_one_root(cluster: &Cluster) {
    cluster.run(&["create", "namespace", "race"]);
    let mut opening = JoinSet::new();
    for _ in 0..8 {
        let (client, settings) = (cluster.client.clone(), settings("race", Path::new("/nonexistent")));
        opening.spawn(async move { Roots::open(client, settings, Arc::new(SystemClock)).await.expect("a root") });
    }
    let all = opening.join_all().await;
    let first = all[0].ca().root_pem();
    assert!(all.iter().all(|roots| roots.ca().root_pem() == first), "all have the one root");
    let secret = cluster.json(&["get", "secret", "istio-ca-secret", "-n", "race", "-o", "json"]);
    assert_eq!(secret["type"], "istio.io/ca-root");
    // A later start reads it, too; one for another namespace has its own.
    let again = Roots::open(cluster.client.clone(), settings("race", Path::new("/nonexistent")), Arc::new(SystemClock));
    assert_eq!(again.await.expect("a root").ca().root_pem(), first);
}

/// The last fifth of a root's life: announced, handed out, signed with, and only then is the old one let go.
pub async fn one_root_follows_another(cluster: &Cluster) {
    cluster.run(&["create", "namespace", "old"]);
    let nine_years = Duration::from_secs(9 * 365 * DAY_S);
    let old = RootSecret::new("cluster.local", ROOT_TTL, SystemTime::now() - nine_years).expect("a root");
    let mut secret = Secret::default();
    secret.metadata.name = Some("istio-ca-secret".into());
    old.write(&mut secret);
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "old");
    secrets.create(&PostParams::default(), &secret).await.expect("created");

    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let clocks: [Arc<Ahead>; 2] = Default::default();
    let mut replicas = Vec::new();
    for (number, clock) in clocks.iter().enumerate() {
        let leadership = leadership(&cluster.client, "old", &format!("replica-{number}"), &stop);
        let settings = settings("old", Path::new("/nonexistent"));
        replicas.push(Replica::start(&cluster.client, settings, Arc::clone(clock) as _, leadership).await);
    }
    let before = replicas[0].ca.signer();
    assert_eq!(before.roots().len(), 1);
    eventually("both roots are handed out by both", async || replicas.iter().all(|replica| replica.roots() == 2)).await;
    let both = replicas[0].ca.root_pem();
    assert!(replicas.iter().all(|replica| replica.ca.signer().not_after() == before.not_after()), "the old one signs");

    // Somebody deletes the Secret meanwhile: it comes again with the same root.
    cluster.run(&["delete", "secret", "istio-ca-secret", "-n", "old"]);
    eventually("the Secret is there again", async || {
        secrets.get_opt("istio-ca-secret").await.is_ok_and(|found| found.is_some())
    })
    .await;
    assert!(replicas.iter().all(|replica| replica.ca.root_pem() == both));

    let pass = |days: u64| {
        for clock in &clocks {
            clock.0.fetch_add(days * DAY_S, Ordering::SeqCst);
        }
    };
    pass(91);
    eventually("the new root signs at both", async || {
        let switched = |replica: &Replica| replica.ca.signer().not_after() > before.not_after() && replica.roots() == 2;
        replicas.iter().all(switched)
    })
    .await;
    let (request, issued) = issue(&replicas[1].ca);
    let issued = ambit_identity::IssuedChain { roots: roots_of(&both), ..issued };
    request.check(&issued, &SystemClock).expect("who was given both roots trusts it");
    pass(91);
    eventually("the old root is gone", async || replicas.iter().all(|replica| replica.roots() == 1)).await;
}

fn issue(ca: &Ca) -> (ambit_identity::CertificateRequest, ambit_identity::IssuedChain) {
    let id = "spiffe://cluster.local/ns/a/sa/b".parse().expect("an identity");
    let request = ambit_identity::CertificateRequest::new(&id).expect("a request");
    let issued = ca.issue(request.pem(), &id, Duration::from_secs(3600)).expect("signed");
    (request, issued)
}

fn roots_of(pem: &str) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    let all = rustls_pki_types::CertificateDer::pem_slice_iter(pem.as_bytes());
    all.map(|root| root.expect("a certificate")).collect()
}

/// An operator's root with an intermediate that signs.
struct Operator {
    root: String,
    certificate: String,
    key: String,
}

impl Operator {
    fn new(name: &str) -> Self {
        let ca = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let (root_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let root = ca(name).self_signed(&root_key).expect("a root");
        let certificate =
            ca(&format!("{name} signs")).signed_by(&key, &Issuer::new(ca(name), &root_key)).expect("signed");
        Self { root: root.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn revocation_list(&self) -> String {
        let key = KeyPair::from_pem(&self.key).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, key).expect("a CA");
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).expect("signed").pem().expect("PEM")
    }

    /// As a kubelet mounts a Secret: a new folder, then one link is swapped.
    fn mount(&self, folder: &Path, generation: u32, roots: &str) {
        let data = folder.join(format!("..{generation}"));
        fs::create_dir(&data).expect("a folder");
        let files = [("ca-cert.pem", &*self.certificate), ("ca-key.pem", &self.key), ("root-cert.pem", roots)];
        for (name, text) in files {
            fs::write(data.join(name), text).expect("written");
        }
        let new = folder.join("..data_tmp");
        std::os::unix::fs::symlink(&data, &new).expect("linked");
        fs::rename(&new, folder.join("..data")).expect("swapped");
        for (name, _) in files {
            let link = folder.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(Path::new("..data").join(name), link).expect("linked");
            }
        }
    }
}

pub async fn a_plugged_in_ca_is_reloaded(cluster: &Cluster) {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (Operator::new("one"), Operator::new("two"));
    one.mount(folder.path(), 1, &one.root);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let leads = leadership(&cluster.client, "race", "folder", &stop);
    let replica = Replica::start(&cluster.client, settings("race", folder.path()), Arc::new(SystemClock), leads).await;
    let (_, issued) = issue(&replica.ca);
    assert_eq!((issued.chain.len(), issued.roots.len()), (2, 1), "leaf and intermediate");

    // A jump to another root would cut the mesh in two, and half a pair is none: the old one stays, and says so.
    let before = replica.ca.signer();
    let broken = Operator { key: "words".into(), ..Operator::new("one") };
    for (generation, operator, root, reason) in
        [(2, &two, &two.root, "hold another root"), (3, &broken, &one.root, "no private key")]
    {
        operator.mount(folder.path(), generation, root);
        eventually(reason, async || {
            let problem = replica.problem.borrow().clone().unwrap_or_default();
            assert!(!problem.contains("words"), "{problem}");
            problem.contains(reason)
        })
        .await;
        assert!(replica.ca.signer().is_same_as(&before));
    }

    // In steps it goes: both roots, then the other signs, then one root.
    let both = format!("{}{}", one.root, two.root);
    let steps = [(&one, &*both, 2), (&two, &both, 2), (&two, &two.root, 1)];
    for (generation, (operator, roots, count)) in (4..).zip(steps) {
        operator.mount(folder.path(), generation, roots);
        eventually(&format!("step {generation}"), async || {
            let (_, issued) = issue(&replica.ca);
            let leads_to = roots_of(&operator.certificate)[0] == issued.chain[1];
            leads_to && issued.roots.len() == count
        })
        .await;
    }
    assert_eq!(*replica.problem.borrow(), None);
    assert!(replica.crl.borrow().is_none());

    // Revocation doesn't wait until the rest is right.
    broken.mount(folder.path(), 7, &two.root);
    fs::write(folder.path().join("ca-crl.pem"), two.revocation_list()).expect("written");
    eventually("the lists are taken", async || replica.crl.borrow().is_some()).await;
    assert!(replica.ca.root_pem().trim() == two.root.trim());
}
