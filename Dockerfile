# Not built: no Docker runs where this project is developed, so nobody has seen this file work. Tell us where it fails.
#
#   docker build -t dgpo .                                                       # CPU
#   docker build -t dgpo --build-arg TORCH_INDEX=https://pypi.org/simple .       # CUDA, as PyPI has it: run with --gpus all
#   docker run --rm -v "$PWD:/work" dgpo quickstart
#   docker run --rm -it -v "$PWD:/work" dgpo chat
#   docker run --rm -v "$PWD:/work" -p 127.0.0.1:8000:8000 dgpo serve --host 0.0.0.0 --token-file token.txt
#
# Runs, indexes and downloaded models are written into the mounted folder, by user 1000. Where it belongs to another one,
# give `docker run` also: --user "$(id -u):$(id -g)" -e HOME=/work
FROM python:3.11-slim

# Its builds are of a higher version (2.13.0+cpu) than PyPI's with CUDA (2.13.0), so pip prefers them.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/work/.cache/huggingface
WORKDIR /opt/dgpo
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt '.[gguf,lora,mcp,office,pdf,plots,serve]' \
    && useradd --create-home --uid 1000 dgpo && mkdir /work && chown dgpo /work
USER dgpo
WORKDIR /work
ENTRYPOINT ["dgpo"]
