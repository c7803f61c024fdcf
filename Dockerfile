# The image of every node of a lab exported for containerlab (softnlb lab export containerlab).
FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        python3-venv python3-dev gcc libc6-dev libnetfilter-queue-dev libbpf1 \
        iproute2 iputils-ping nftables procps tcpdump curl \
    && rm -rf /var/lib/apt/lists/*
COPY . /opt/softnlb-source
RUN python3 -m venv /opt/softnlb \
    && /opt/softnlb/bin/pip install --no-cache-dir "/opt/softnlb-source[nfqueue]" \
    && ln -s /opt/softnlb/bin/softnlb /usr/local/bin/softnlb \
    && rm -rf /opt/softnlb-source \
    && mkdir -p /srv /etc/softnlb
CMD ["sleep", "infinity"]
