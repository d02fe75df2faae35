//! The settings as `/config_dump` shows them. Nothing secret: no token, no PEM, no headers.

use serde_json::{Value, json};

use super::{ProxyMode, Settings};

impl Settings {
    /// By name, in camel case, as Istio's node proxy names them. Durations are in seconds.
    pub fn shown(&self, cores: usize) -> Value {
        let Self { mode, control_plane, sources, pods, transport, budgets: _, draining, threads, operations } = self;
        json!({
            "proxyMode": match mode.proxy_mode { ProxyMode::Shared => "Shared", ProxyMode::Dedicated => "Dedicated" },
            "proxyWorkloadInformation": mode.proxy_workload_info.as_ref().map(|own| {
                json!({"name": own.name, "namespace": own.namespace, "serviceAccount": own.service_account})
            }),
            "proxy": mode.enable_proxy,
            "dnsProxy": mode.dns_capture,
            "localNode": mode.node_name,
            "network": mode.network,
            "clusterId": mode.cluster(),
            "clusterDomain": mode.cluster_domain,
            "trustDomain": mode.trust_domain,
            "localIp": mode.instance_ip,
            "xdsAddress": control_plane.xds_address(),
            "caAddress": control_plane.ca_address(),
            "altXdsHostname": control_plane.alt_xds_hostname,
            "altCaHostname": control_plane.alt_ca_hostname,
            "xdsOnDemand": sources.xds_on_demand,
            "localXdsPath": sources.local_xds_path,
            "xdsStateFile": control_plane.xds_state_file,
            "secretTtl": control_plane.secret_ttl.as_secs(),
            "crlPath": control_plane.crl_path,
            "fakeCa": sources.insecure_ca_dir.is_some(),
            "inpodUds": pods.inpod_uds,
            "inpodPortReuse": pods.inpod_port_reuse,
            "packetMark": pods.mark(mode.proxy_mode),
            "requireOriginalSource": pods.enable_orig_src,
            "ipv6Enabled": pods.ipv6_enabled,
            "localhostAppTunnel": pods.localhost_app_tunnel,
            "enableSocks5": pods.unstable_enable_socks5,
            "poolMaxStreamsPerConn": transport.pool_max_streams_per_connection,
            "poolUnusedReleaseTimeout": transport.pool_unused_release_timeout.as_secs(),
            "windowSize": transport.http2_stream_window_size,
            "connectionWindowSize": transport.http2_connection_window_size,
            "frameSize": transport.http2_frame_size,
            "keepaliveEnabled": transport.keepalive_enabled,
            "enableResponseBaggage": transport.enable_response_baggage,
            "explainRefusals": transport.explain_refusals,
            "selfTerminationDeadline": draining.deadline().as_secs(),
            "numWorkerThreads": threads.workers(cores),
            "adminPort": operations.admin_port(),
            "statsPort": operations.stats_port(),
            "readinessPort": operations.readiness_port,
        })
    }
}
